use proptest::prelude::*;

use super::*;
use crate::boot::synth::{self, BASE, INIT_SIZE, PAYLOAD_AT, SETUP_LEN};

fn parse(image: &[u8]) -> Result<SetupHeader, HeaderError> {
    SetupHeader::parse(&image[..image.len().min(HEAD_SIZE)], image.len() as u64)
}

fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = synth::bzimage(&[7; 1000]);
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

fn refusal(at: usize, bytes: &[u8]) -> String {
    parse(&patched(at, bytes)).unwrap_err().to_string()
}

#[test]
fn the_header_says_where_everything_is() {
    let image = synth::bzimage(&[7; 1000]);
    let header = parse(&image).unwrap();
    let code_len = (image.len() - SETUP_LEN) as u64;
    assert_eq!(header.code, FileRange { offset: SETUP_LEN as u64, len: code_len });
    let offset = (SETUP_LEN + PAYLOAD_AT) as u64;
    assert_eq!(header.payload, Some(FileRange { offset, len: 1000 }));
    assert_eq!((header.load_address, header.init_size), (BASE, INIT_SIZE));
    assert_eq!((header.initrd_addr_max, header.cmdline_size), (0x7fff_ffff, 2047));
    assert!(header.has_entry64() && header.can_be_above_4g());
    assert_eq!(header.raw.len(), 0x202 + 0x6a - HEADER_AT);
    assert_eq!(header.raw[0x202 - HEADER_AT..][..4], *b"HdrS");
}

#[test]
fn what_a_signing_tool_appends_is_not_code() {
    let mut image = synth::bzimage(&[7; 1000]);
    let code = parse(&image).unwrap().code;
    image.extend([1; 1477]);
    assert_eq!(parse(&image).unwrap().code, code);
}

#[test]
fn sizes_rounded_up_to_a_paragraph_are_true() {
    // memtest86+ 6.10 ends 8 bytes before its last paragraph does.
    let mut image = synth::bzimage(&[]);
    image.truncate(image.len() - 8);
    assert_eq!(parse(&image).unwrap().code.len, (image.len() - SETUP_LEN) as u64);
}

#[test]
fn a_file_truncated_anywhere_is_refused() {
    let whole = synth::bzimage(&[7; 20_000]);
    for sixteenth in 0..16 {
        let error = parse(&whole[..whole.len() * sixteenth / 16]).unwrap_err();
        let expected = match sixteenth {
            0 => matches!(error, HeaderError::NoHeader),
            _ => matches!(error, HeaderError::Truncated { .. }),
        };
        assert!(expected, "{sixteenth}/16: {error}");
    }
    for len in [0x1f1, 0x205, 0x206, 0x210, 0x240, 0x263] {
        assert!(parse(&whole[..len]).is_err(), "{len:#x}");
    }
}

#[test]
fn lies_are_refused() {
    assert!(refusal(0x206, &[0x07, 0x02]).contains("2.07"));
    assert!(refusal(0x211, &[0]).contains("zImage"));
    assert!(refusal(0x1f4, &[0xff; 4]).contains("truncated"));
    assert!(refusal(0x1f4, &[0; 4]).contains("0 bytes"));
    assert!(refusal(0x1f1, &[0xff]).contains("truncated"));
    assert!(refusal(0x24c, &[0xff; 4]).contains("payload"));
    assert!(refusal(0x248, &[0xff; 4]).contains("payload"));
    assert!(refusal(0x230, &[3, 0, 0, 0]).contains("power of two"));
    assert!(refusal(0x258, &[0xff; 8]).contains("load address"));
    assert!(refusal(0x258, &[1, 0, 0, 0, 0, 0, 0, 0x80]).contains("load address"));
}

#[test]
fn a_payload_must_be_inside_the_code() {
    let mut image = patched(0x24c, &1300u32.to_le_bytes());
    image.extend([0; 4096]);
    assert!(parse(&image).unwrap_err().to_string().contains("not inside its code"));
}

#[test]
fn what_cannot_be_moved_goes_where_its_header_says() {
    let fixed = parse(&patched(0x234, &[0])).unwrap();
    assert_eq!(fixed.load_address, 0x10_0000);
    let odd = parse(&patched(0x258, &(BASE + 1).to_le_bytes())).unwrap();
    assert_eq!(odd.load_address, BASE + 0x20_0000);
}

#[test]
fn old_protocols_lack_the_newer_fields() {
    let old = parse(&patched(0x206, &[0x08, 0x02])).unwrap();
    assert_eq!((old.init_size, old.xloadflags, old.load_address), (0, 0, 0x10_0000));
}

proptest! {
    #[test]
    fn a_mutated_header_never_panics_and_never_points_outside_the_file(
        changes in prop::collection::vec((0x1f1usize..0x270, any::<u8>()), 1..8),
        cut in 0usize..3000,
    ) {
        let mut image = synth::bzimage(&[7; 1000]);
        for (at, value) in changes {
            image[at] = value;
        }
        image.truncate(image.len().saturating_sub(cut));
        if let Ok(header) = parse(&image) {
            let len = image.len() as u64;
            prop_assert!(header.code.offset + header.code.len <= len);
            prop_assert!(header.payload.is_none_or(|payload| payload.offset + payload.len <= len));
            prop_assert!(header.raw.len() <= 0x290 - HEADER_AT);
        }
    }
}
