//! The records that flows carry: lines of 64 bytes that tell a changed, a missing and a displaced one apart.

/// Length of every record, its newline included.
pub(super) const LENGTH: usize = 64;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Record `number` of the flow `seed`: flow, number, a body that follows from both, a sum over all of it.
pub(super) fn record(seed: u32, number: u64) -> [u8; LENGTH] {
    let mut line = [b' '; LENGTH];
    hex(&mut line[..8], seed.into());
    hex(&mut line[9..21], number);
    let mut state = (u64::from(seed) << 32) ^ number ^ 0x9e37_79b9_7f4a_7c15;
    for byte in &mut line[22..46] {
        // xorshift64*: cheap, and no two records of a run share a body.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        *byte = digit(state >> 60);
    }
    let sum = fnv(&line[..46]);
    hex(&mut line[47..63], sum);
    line[63] = b'\n';
    line
}

/// The last line of a stream: how many records its sender says there were.
pub(super) fn end(count: u64) -> [u8; LENGTH] {
    note(&format!("end {count}"))
}

/// A line that says what is wrong, in place of a record.
pub(super) fn wrong(reason: &str) -> [u8; LENGTH] {
    note(&format!("wrong {reason}"))
}

fn note(text: &str) -> [u8; LENGTH] {
    let mut line = [b' '; LENGTH];
    let text = &text.as_bytes()[..text.len().min(LENGTH - 1)];
    line[..text.len()].copy_from_slice(text);
    line[LENGTH - 1] = b'\n';
    line
}

fn hex(target: &mut [u8], mut value: u64) {
    for byte in target.iter_mut().rev() {
        *byte = digit(value);
        value >>= 4;
    }
}

/// The lowest four bits.
fn digit(value: u64) -> u8 {
    usize::try_from(value & 0xf).map_or(b'0', |n| HEX[n])
}

/// FNV-1a: not against malice, only against what wires and kernels do.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Number of a record that is whole and of the flow `seed`.
pub(super) fn number(seed: u32, line: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(line.get(9..21)?).ok()?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (line == record(seed, number)).then_some(number)
}

/// Checks a stream of records: each byte, and their order.
#[derive(Debug)]
pub(super) struct Checker {
    seed: u32,
    next: u64,
    rest: Vec<u8>,
    ended: Option<u64>,
}

impl Checker {
    pub(super) fn new(seed: u32) -> Self {
        Self {
            seed,
            next: 0,
            rest: Vec::with_capacity(LENGTH),
            ended: None,
        }
    }

    /// How many right records came.
    pub(super) fn count(&self) -> u64 {
        self.next
    }

    /// What the sender said at the end how many there were.
    pub(super) fn ended(&self) -> Option<u64> {
        self.ended
    }

    /// Takes the next bytes of the stream; gives how many records they completed.
    ///
    /// # Errors
    /// What is wrong with the stream; it is worthless from there on.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<u64, String> {
        let before = self.next;
        self.rest.extend_from_slice(bytes);
        let whole = self.rest.len() - self.rest.len() % LENGTH;
        let rest = self.rest.split_off(whole);
        let lines = std::mem::replace(&mut self.rest, rest);
        for line in lines.chunks(LENGTH) {
            self.line(line)?;
        }
        Ok(self.next - before)
    }

    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        if self.ended.is_some() {
            return Err("bytes after the end".to_owned());
        }
        if line == record(self.seed, self.next) {
            self.next += 1;
            return Ok(());
        }
        let text = String::from_utf8_lossy(line);
        if let Some(count) = text.strip_prefix("end ") {
            self.ended = count.trim().parse().ok();
            return Ok(());
        }
        if let Some(reason) = text.strip_prefix("wrong ") {
            return Err(format!("the other side got: {}", reason.trim()));
        }
        Err(match number(self.seed, line) {
            Some(other) => format!("record {other} in place of {}", self.next),
            None => format!("record {} is not as it was sent: {}", self.next, text.trim()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
        numbers.into_iter().flat_map(|n| record(7, n)).collect()
    }

    #[test]
    fn a_right_stream_passes_however_it_is_cut() {
        let bytes = stream(0..20);
        for size in [1, 63, 64, 65, 1000] {
            let mut checker = Checker::new(7);
            let taken: u64 = bytes.chunks(size).map(|part| checker.take(part).unwrap()).sum();
            assert_eq!((taken, checker.count()), (20, 20), "cut each {size}");
            checker.take(&end(20)).unwrap();
            assert_eq!(checker.ended(), Some(20));
            assert!(checker.take(&record(7, 20)).is_err(), "after the end");
        }
    }

    #[test]
    fn every_single_changed_byte_is_noticed() {
        for at in 0..LENGTH {
            let mut bytes = stream(0..3);
            bytes[LENGTH + at] ^= 1;
            let error = Checker::new(7).take(&bytes).unwrap_err();
            assert!(error.starts_with("record 1 is not"), "byte {at}: {error}");
        }
    }

    #[test]
    fn missing_repeated_swapped_and_foreign_records_are_noticed() {
        for (numbers, said) in [
            (vec![0, 2], "record 2 in place of 1"),
            (vec![0, 0], "record 0 in place of 1"),
            (vec![1, 0], "record 1 in place of 0"),
        ] {
            assert_eq!(Checker::new(7).take(&stream(numbers)).unwrap_err(), said);
        }
        assert!(
            Checker::new(8).take(&stream([0])).is_err(),
            "another flow's record"
        );
        let mut shifted = stream(0..3);
        shifted.remove(70);
        assert!(Checker::new(7).take(&shifted).is_err(), "a lost byte");
    }

    #[test]
    fn what_the_other_side_found_wrong_is_told() {
        let error = Checker::new(7)
            .take(&wrong("record 4 in place of 3"))
            .unwrap_err();
        assert_eq!(error, "the other side got: record 4 in place of 3");
    }

    #[test]
    fn records_name_themselves_and_are_all_different() {
        assert_eq!(number(7, &record(7, 0x1234)), Some(0x1234));
        assert_eq!(number(8, &record(7, 0x1234)), None);
        assert_eq!(number(7, b"short"), None);
        let bodies: std::collections::BTreeSet<_> =
            (0..1000).map(|n| record(7, n)[22..46].to_vec()).collect();
        assert_eq!(bodies.len(), 1000);
    }
}
