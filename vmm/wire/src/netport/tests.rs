//! Tests of the switch port's messages.

use proptest::prelude::*;

use super::*;

fn round_trip(message: &ToSwitch) {
    let bytes = control_bytes(message).unwrap();
    let back = read_message::<ToSwitch>(&mut &bytes[..]).unwrap();
    assert_eq!(back, Some(Message::Control(message.clone())));
}

#[test]
fn messages_round_trip() {
    let mac: Mac = "52:54:00:12:34:56".parse().unwrap();
    let (vm, replica) = (VmId([8; 16]), ReplicaId(u64::MAX));
    let hello = Hello {
        version: VERSION,
        vm,
        replica,
        view: 3,
        live: true,
        mac,
    };
    round_trip(&ToSwitch::Hello(hello));
    round_trip(&ToSwitch::GoLive { view: u64::MAX });
    round_trip(&ToSwitch::Consumed { frames: 7 });
    assert_eq!(read_message::<ToSwitch>(&mut &[][..]).unwrap(), None);
}

#[test]
fn addresses_are_read_or_refused() {
    assert_eq!(
        "00:ff:0A:1b:2c:3d".parse::<Mac>().unwrap().to_string(),
        "00:ff:0a:1b:2c:3d"
    );
    for text in [
        "",
        "00:11:22:33:44",
        "00:11:22:33:44:55:66",
        "0:11:22:33:44:555",
        "zz:11:22:33:44:55",
        "+1:11:22:33:44:55",
    ] {
        assert!(text.parse::<Mac>().is_err(), "{text:?}");
    }
}

#[test]
fn lengths_are_checked_before_memory_is_taken() {
    let read = |word: u32| read_message::<ToSwitch>(&mut &word.to_be_bytes()[..]).unwrap_err();
    assert!(matches!(
        read(MAX_FRAME as u32 + 1),
        WireError::FrameTooLong(_)
    ));
    assert!(matches!(
        read(MIN_FRAME as u32 - 1),
        WireError::FrameTooShort(_)
    ));
    assert!(matches!(
        read(1 << 24 | (MAX_CONTROL as u32 + 1)),
        WireError::ControlTooLong(_)
    ));
    assert!(matches!(read(2 << 24), WireError::Kind(2)));
    assert!(frame_header(&[0; MAX_FRAME + 1]).is_err() && frame_header(&[0; 13]).is_err());
}

proptest! {
    #[test]
    fn frames_round_trip(frame in prop::collection::vec(any::<u8>(), MIN_FRAME..2000)) {
        let bytes = [&frame_header(&frame).unwrap()[..], &frame].concat();
        let back = read_message::<FromSwitch>(&mut &bytes[..]).unwrap();
        prop_assert_eq!(back, Some(Message::Frame(Bytes::from(frame))));
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..3u8) {
        let _ = read_message::<ToSwitch>(&mut &bytes[..]);
        let framed = [&[kind, 0, 0, bytes.len() as u8][..], &bytes].concat();
        let _ = read_message::<ToSwitch>(&mut &framed[..]);
        let _ = read_message::<FromSwitch>(&mut &framed[..]);
    }
}
