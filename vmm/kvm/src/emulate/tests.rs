use super::count_prefixes;

#[test]
fn prefixes_are_counted() {
    assert_eq!(count_prefixes(&[0x0f, 0x31], true), 0);
    assert_eq!(count_prefixes(&[0x66, 0x48, 0x0f, 0x31], true), 2);
    assert_eq!(count_prefixes(&[0xf3, 0x2e, 0x0f, 0x01, 0xf9], false), 2);
    // Outside of 64-bit code 48h is an instruction.
    assert_eq!(count_prefixes(&[0x66, 0x48, 0x0f, 0x31], false), 0);
    assert_eq!(count_prefixes(&[], true), 0);
}
