use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::boot::synth::{ALL, noise, pack};

fn unpack(payload: &[u8], limit: u64) -> Result<Vec<u8>, UnpackError> {
    super::unpack(payload, Compression::detect(payload).unwrap(), limit)
}

#[test]
fn every_compression_unpacks_to_what_was_packed() {
    let mut bytes = noise(30_000, 5);
    bytes.extend(b"\xe8\x01\x02\x03\x00call\xe9\x10\x20\x30\x00".repeat(5000));
    bytes.extend(vec![0; 20_000]);
    for compression in ALL {
        let payload = pack(compression, &bytes);
        assert_eq!(Compression::detect(&payload), Some(compression));
        assert!(unpack(&payload, 1 << 20).unwrap() == bytes, "{}", compression.name());
    }
}

#[test]
fn lz4_has_many_blocks() {
    let bytes = noise(9 << 20, 6);
    assert!(unpack(&pack(Compression::Lz4, &bytes), 1 << 30).unwrap() == bytes);
}

#[test]
fn a_payload_longer_than_it_says_is_stopped_there() {
    for compression in ALL {
        let mut payload = pack(compression, &vec![0; 1 << 20]);
        let end = payload.len() - 4;
        payload[end..].copy_from_slice(&1000u32.to_le_bytes());
        let error = unpack(&payload, 1 << 30).unwrap_err();
        // lz4's decoder itself says that the room does not do, gzip's that the length is wrong.
        assert!(
            matches!(&error, UnpackError::WrongLength { claimed: 1000, .. })
                || matches!(&error, UnpackError::Corrupt { .. }),
            "{error}"
        );
    }
}

#[test]
fn a_payload_shorter_than_it_says_is_refused() {
    for compression in ALL {
        let mut payload = pack(compression, &noise(5000, 1));
        let end = payload.len() - 4;
        payload[end..].copy_from_slice(&0x0f00_0000u32.to_le_bytes());
        let error = unpack(&payload, 1 << 30).unwrap_err().to_string();
        assert!(error.contains("short") || error.contains("gzip"), "{error}");
    }
}

#[test]
fn a_claim_above_the_limit_is_refused_unread() {
    let payload = pack(Compression::Lz4, &noise(5000, 1));
    let error = unpack(&payload, 4999).unwrap_err();
    assert!(matches!(error, UnpackError::TooLarge { claimed: 5000, limit: 4999 }), "{error}");
    let mut payload = payload;
    let end = payload.len() - 4;
    payload[end..].copy_from_slice(&[0xff; 4]);
    let error = unpack(&payload, u64::MAX).unwrap_err();
    assert!(matches!(error, UnpackError::TooLarge { limit: MAX_UNPACKED, .. }), "{error}");
}

#[test]
fn a_truncated_payload_is_refused() {
    for compression in ALL {
        let payload = pack(compression, &noise(5000, 1));
        for sixteenth in 0..16 {
            let cut = &payload[..payload.len() * sixteenth / 16];
            assert!(super::unpack(cut, compression, 1 << 20).is_err());
        }
    }
}

#[test]
fn a_window_larger_than_any_kernels_is_refused() {
    // lzma-alone with a dictionary of 4 GiB - 1.
    let mut payload = pack(Compression::Lzma, &noise(5000, 1));
    payload[1..5].copy_from_slice(&[0xff; 4]);
    assert!(super::unpack(&payload, Compression::Lzma, 1 << 20).is_err());
}

static PACKED: LazyLock<[Vec<u8>; 6]> =
    LazyLock::new(|| ALL.map(|compression| pack(compression, &noise(3000, 4))));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_mutated_payload_never_panics_and_never_grows(
        kind in 0usize..6,
        changes in prop::collection::vec((0.0f64..1.0, any::<u8>()), 1..6),
    ) {
        let mut payload = PACKED[kind].clone();
        for (at, value) in changes {
            let at = (at * payload.len() as f64) as usize;
            payload[at] = value;
        }
        if let Ok(bytes) = super::unpack(&payload, ALL[kind], 1 << 20) {
            prop_assert!(bytes.len() <= 1 << 20);
        }
    }
}
