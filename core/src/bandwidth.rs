//! How much a policy's pods may send: from what users write to what the kernel counts in.

use spillway_crds::hub::Bandwidth;

/// Most bits a second.
const MOST: u64 = 100_000_000_000;
/// Most bits at once: the kernel takes a burst of 32 bits of bytes (`NFTA_LIMIT_BURST`).
const MOST_AT_ONCE: u64 = 34_000_000_000;
/// Least of either. A bucket must hold the largest packet that a pod can hand over, of 64 KiB, or that would never pass.
const LEAST: u64 = 1_000_000;

/// A limit in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limit {
    /// Bytes a second, 125,000 at least.
    pub rate: u64,
    /// Bytes at once, besides one second's.
    pub burst: u64,
}

/// What can't be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field}: {text:?} isn't {wanted}")]
pub struct BadBandwidth {
    /// The field.
    pub field: &'static str,
    text: String,
    wanted: &'static str,
}

/// Reads a limit.
///
/// # Errors
/// Where rate or burst aren't numbers of bits with `M` or `G` behind, within what the kernel takes.
pub fn parse(bandwidth: &Bandwidth) -> Result<Limit, BadBandwidth> {
    let read = |field, text: &str, most, wanted| {
        bits(text)
            .filter(|bits| (LEAST..=most).contains(bits))
            .map(|bits| bits / 8)
            .ok_or_else(|| BadBandwidth {
                field,
                text: text.into(),
                wanted,
            })
    };
    Ok(Limit {
        rate: read(
            "rate",
            &bandwidth.rate,
            MOST,
            "a number of bits a second from 1M to 100G",
        )?,
        burst: match &bandwidth.burst {
            Some(text) => read("burst", text, MOST_AT_ONCE, "a number of bits from 1M to 9G")?,
            None => 0,
        },
    })
}

/// `50M` is 50,000,000.
fn bits(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return None,
    };
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse::<u64>().ok().filter(|_| plain)?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rate: &str, burst: Option<&str>) -> Result<Limit, BadBandwidth> {
        parse(&Bandwidth {
            rate: rate.into(),
            burst: burst.map(str::to_owned),
        })
    }

    #[test]
    fn bits_become_bytes() {
        let limit = |rate, burst| Ok(Limit { rate, burst });
        assert_eq!(of("1M", None), limit(125_000, 0));
        assert_eq!(of("100G", Some("9G")), limit(12_500_000_000, 1_125_000_000));
        assert_eq!(of("50M", Some("20M")), limit(6_250_000, 2_500_000));
    }

    #[test]
    fn what_isnt_a_number_of_bits_is_named() {
        for wrong in [
            "",
            "M",
            "0M",
            "-1M",
            "+1M",
            "1.5M",
            "1k",
            "1Mi",
            "101G",
            "1000000",
            "99999999999999999999G",
            "1\u{e9}",
        ] {
            assert_eq!(of(wrong, None).map_err(|e| e.field), Err("rate"), "{wrong}");
            assert_eq!(
                of("1M", Some(wrong)).map_err(|e| e.field),
                Err("burst"),
                "{wrong}"
            );
        }
    }
}
