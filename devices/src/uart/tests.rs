use super::*;

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const MSR: u8 = 6;

fn uart() -> Uart {
    let mut uart = Uart::new();
    uart.write(MCR, MCR_OUT2 | MCR_RTS | MCR_DTR);
    uart
}

#[test]
fn sends_and_is_ready_again() {
    let mut uart = uart();
    assert_eq!(uart.read(LSR), LSR_EMPTY);
    assert_eq!(uart.write(DATA, b'x'), Some(b'x'));
    assert_eq!(uart.read(LSR), LSR_EMPTY);
}

#[test]
fn transmit_interrupt_on_enable_and_after_each_byte() {
    let mut uart = uart();
    uart.write(IER, IER_TRANSMIT);
    assert!(uart.irq());
    assert_eq!(uart.read(IIR), IIR_TRANSMIT);
    assert!(!uart.irq(), "reading IIR acknowledges");
    assert_eq!(uart.read(IIR), IIR_NONE);
    uart.write(DATA, 1);
    assert!(uart.irq());
    uart.write(IER, 0);
    assert!(!uart.irq());
    // Linux's test for a lost THRE: off and on again raises it once more.
    uart.write(IER, IER_TRANSMIT);
    assert_eq!(uart.read(IIR), IIR_TRANSMIT);
}

#[test]
fn receives_through_fifo_and_backlog_in_order() {
    let mut uart = uart();
    uart.write(FCR, FCR_ENABLE | 0xc0);
    uart.write(IER, IER_RECEIVE);
    let sent: Vec<u8> = (0..100).collect();
    uart.receive(&sent[..3]);
    assert_eq!(
        uart.read(IIR) & 0x0f,
        IIR_TIMEOUT,
        "below the trigger of 14"
    );
    uart.receive(&sent[3..]);
    assert_eq!(uart.read(IIR), IIR_RECEIVE | IIR_FIFO);
    let mut got = Vec::new();
    while uart.read(LSR) & LSR_DATA != 0 {
        got.push(uart.read(DATA));
    }
    assert_eq!(got, sent);
    assert!(!uart.irq());
}

#[test]
fn the_backlog_is_bounded_and_counts_what_it_drops() {
    let mut uart = uart();
    while uart.can_receive() {
        uart.receive(&[7; INPUT_CHUNK]);
        assert_eq!(uart.dropped(), 0);
    }
    uart.receive(&[7; BACKLOG]);
    // One byte has moved up into the receiver.
    assert_eq!(
        uart.dropped(),
        (BACKLOG / INPUT_CHUNK * INPUT_CHUNK) as u64 - 1
    );
}

#[test]
fn divisor_latch_hides_data_and_ier() {
    let mut uart = uart();
    uart.write(LCR, LCR_DLAB | 3);
    assert_eq!(uart.write(DATA, 0x34), None);
    uart.write(IER, 0x12);
    assert_eq!((uart.read(DATA), uart.read(IER)), (0x34, 0x12));
    uart.write(LCR, 3);
    assert_eq!(uart.read(IER), 0);
}

#[test]
fn loopback_of_data_and_modem_lines() {
    let mut uart = uart();
    uart.write(MCR, MCR_LOOP | MCR_RTS | MCR_OUT2);
    // 8250.c's presence test.
    assert_eq!(uart.read(MSR) & 0xf0, MSR_CTS | MSR_DCD);
    assert_eq!(uart.write(DATA, 0xa5), None, "nothing leaves in loopback");
    uart.receive(b"outside");
    assert_eq!(uart.read(DATA), 0xa5);
    assert_eq!(uart.read(LSR) & LSR_DATA, 0, "the line is disconnected");
    uart.write(DATA, 1);
    uart.write(DATA, 2);
    assert_eq!(uart.read(LSR) & LSR_OVERRUN, LSR_OVERRUN);
    assert_eq!(uart.read(LSR) & LSR_OVERRUN, 0);
    uart.write(FCR, FCR_CLEAR_RECEIVE);
    uart.write(MCR, MCR_OUT2);
    assert_eq!(uart.read(DATA), b'o');
}

#[test]
fn modem_status_changes_interrupt_once() {
    let mut uart = uart();
    uart.write(IER, IER_MODEM);
    assert!(!uart.irq());
    uart.write(MCR, MCR_LOOP);
    uart.write(MCR, MCR_OUT2);
    assert!(uart.irq(), "CTS, DSR and DCD went and came");
    assert_eq!(uart.read(IIR), IIR_MODEM);
    assert_eq!(uart.read(MSR), 0xbb);
    assert_eq!(uart.read(MSR), 0xb0);
    assert!(!uart.irq());
}

#[test]
fn without_out2_no_interrupt_reaches_the_bus() {
    let mut uart = Uart::new();
    uart.write(IER, IER_TRANSMIT);
    assert!(!uart.irq());
    assert_eq!(uart.read(IIR), IIR_TRANSMIT);
}
