//! Waiting for a condition, bounded.

use std::time::Duration;

use tokio::time::Instant;

use crate::failure::Failure;

/// How often a condition is looked at.
const EVERY: Duration = Duration::from_millis(500);

/// Asks `probe` until it gives something or fails, at most until `deadline`; then `late` says what was
/// waited for. Asks at least once.
pub async fn until<T, P, L>(deadline: Instant, mut probe: P, late: L) -> Result<T, Failure>
where
    P: AsyncFnMut() -> Result<Option<T>, Failure>,
    L: FnOnce() -> Failure,
{
    loop {
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        if Instant::now() + EVERY > deadline {
            return Err(late());
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Reads `90s`, `10m`, `1h30m`, `2d`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration; write it like 90s, 10m or 1h30m");
    let (mut total, mut number) = (0_u64, String::new());
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let value: u64 = number.parse().map_err(|_| wrong())?;
        total = value
            .checked_mul(unit)
            .and_then(|v| total.checked_add(v))
            .ok_or_else(wrong)?;
        number.clear();
    }
    if !number.is_empty() {
        let value: u64 = number.parse().map_err(|_| wrong())?;
        total = total.checked_add(value).ok_or_else(wrong)?;
    }
    if total == 0 || total > 366 * 86_400 {
        return Err(wrong());
    }
    Ok(Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("45"), Ok(Duration::from_secs(45)));
        for wrong in ["", "0s", "m", "1y", "-1s", "99999999999999999999s", "400d"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }
}
