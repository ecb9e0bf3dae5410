//! Sets of ports in blocks of 64.

use spillway_crds::hub::PortRange;

/// Ports in a block.
const BLOCK: u16 = 64;
/// Blocks of all 65,536 ports.
const BLOCKS: usize = 1024;
/// The first block that is ever granted: port 1024. What lies below has meanings of its own.
const FIRST: usize = 16;
/// Ranges that a record has room for.
pub(super) const MAX_RANGES: usize = 64;

/// A set of ports from 1024 on, in whole blocks of 64.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct Ports([u64; BLOCKS / 64]);

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(
                self.ranges()
                    .iter()
                    .map(|r| format_args!("{}-{}", r.first, r.last).to_string()),
            )
            .finish()
    }
}

impl Ports {
    /// No port.
    pub const NONE: Self = Self([0; BLOCKS / 64]);

    /// Every port that can be granted: 1024 to 65535, 1,008 blocks.
    pub fn all() -> Self {
        (FIRST..BLOCKS).fold(Self::NONE, |mut set, block| {
            set.insert(block);
            set
        })
    }

    /// Every block that one of `ranges` touches. What is below port 1024 or backwards is left out.
    pub fn touched(ranges: &[PortRange]) -> Self {
        Self::read(ranges, |first, last| (first / BLOCK, last / BLOCK + 1))
    }

    /// Every block that lies in one of `ranges` as a whole.
    pub fn within(ranges: &[PortRange]) -> Self {
        Self::read(ranges, |first, last| {
            (
                first.div_ceil(BLOCK),
                last / BLOCK + u16::from(last % BLOCK == BLOCK - 1),
            )
        })
    }

    fn read(ranges: &[PortRange], blocks: impl Fn(u16, u16) -> (u16, u16)) -> Self {
        let mut set = Self::NONE;
        for range in ranges.iter().filter(|r| r.first <= r.last) {
            let (from, to) = blocks(range.first, range.last);
            for block in usize::from(from).max(FIRST)..usize::from(to) {
                set.insert(block);
            }
        }
        set
    }

    /// The ports as ranges, neighbours merged, sorted.
    pub fn ranges(&self) -> Vec<PortRange> {
        self.cut_at(BLOCKS)
    }

    /// The same in pieces that end at the latest at multiples of 2,048, so that each can be freed by itself.
    pub fn pieces(&self) -> Vec<PortRange> {
        self.cut_at(2048 / usize::from(BLOCK))
    }

    fn cut_at(&self, blocks: usize) -> Vec<PortRange> {
        let mut out = Vec::new();
        let mut began = None;
        for block in 0..=BLOCKS {
            let inside = block < BLOCKS && self.contains(block);
            if let Some(first) = began
                && (!inside || block % blocks == 0)
            {
                out.push(range(first, block));
                began = None;
            }
            if inside && began.is_none() {
                began = Some(block);
            }
        }
        out
    }

    fn contains(&self, block: usize) -> bool {
        self.0[block / 64] >> (block % 64) & 1 == 1
    }

    fn insert(&mut self, block: usize) {
        self.0[block / 64] |= 1 << (block % 64);
    }

    /// Number of blocks of 64 ports.
    pub fn blocks(&self) -> usize {
        self.0.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Number of ports, at most 64,512.
    pub fn count(&self) -> u16 {
        u16::try_from(self.blocks() * usize::from(BLOCK)).unwrap_or(u16::MAX)
    }

    /// True where no port is in the set.
    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    /// Ports of either.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        self.with(other, |a, b| a | b)
    }

    /// Ports of both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.with(other, |a, b| a & b)
    }

    /// Ports of this set only.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.with(other, |a, b| a & !b)
    }

    fn with(&self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Self {
        let mut out = *self;
        for (a, b) in out.0.iter_mut().zip(other.0) {
            *a = op(*a, b);
        }
        out
    }

    /// An aligned stretch of `blocks` (a power of two) within the set, such that as little as possible of larger
    /// aligned stretches is broken. Of equally good ones it is one next to `near`, then the highest.
    pub(super) fn stretch(&self, blocks: usize, near: &Self) -> Option<Self> {
        let beside = |start: usize| {
            (start > 0 && near.contains(start - 1))
                || (start + blocks < BLOCKS && near.contains(start + blocks))
        };
        (0..BLOCKS)
            .step_by(blocks)
            .filter(|start| self.covers(*start, blocks))
            .min_by_key(|start| {
                let mut whole = blocks;
                while whole < BLOCKS && self.covers(start - start % (whole * 2), whole * 2) {
                    whole *= 2;
                }
                (!beside(*start), whole, BLOCKS - start)
            })
            .map(|start| Self::of(start, blocks))
    }

    /// True where the whole aligned stretch is in the set.
    fn covers(&self, start: usize, blocks: usize) -> bool {
        if blocks >= 64 {
            return self.0[start / 64..(start + blocks) / 64]
                .iter()
                .all(|w| *w == u64::MAX);
        }
        let mask = ((1 << blocks) - 1) << (start % 64);
        self.0[start / 64] & mask == mask
    }

    fn of(start: usize, blocks: usize) -> Self {
        let mut set = Self::NONE;
        for block in start..start + blocks {
            set.insert(block);
        }
        set
    }

    /// A good part of the set and at most half of it: the smallest of the aligned stretches that it consists of, or
    /// the upper half of the largest. Nothing of a single block.
    pub(super) fn half(&self) -> Self {
        let mut left = *self;
        let mut stretches = Vec::new();
        let mut blocks = BLOCKS;
        while blocks > 0 {
            while let Some(stretch) = left.stretch(blocks, &Self::NONE) {
                left = left.minus(&stretch);
                stretches.push(stretch);
            }
            blocks /= 2;
        }
        let mut small = Self::NONE;
        for stretch in stretches.iter().rev() {
            if (small.blocks() + stretch.blocks()) * 2 <= self.blocks() {
                small = small.or(stretch);
            }
        }
        let largest = stretches.first().copied().unwrap_or_default();
        let split = match largest.blocks() / 2 {
            0 => Self::NONE,
            blocks => largest.stretch(blocks, &Self::NONE).unwrap_or_default(),
        };
        if split.blocks() > small.blocks() {
            split
        } else {
            small
        }
    }
}

fn range(first: usize, end: usize) -> PortRange {
    let port = |block: usize| u16::try_from(block * usize::from(BLOCK)).unwrap_or(u16::MAX);
    PortRange {
        first: port(first),
        last: if end == BLOCKS { u16::MAX } else { port(end) - 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[(u16, u16)]) -> Vec<PortRange> {
        list.iter()
            .map(|(first, last)| PortRange {
                first: *first,
                last: *last,
            })
            .collect()
    }

    #[test]
    fn ranges_are_read_outwards_or_inwards_and_written_merged() {
        let odd = ranges(&[(1000, 1100), (2048, 2111), (2112, 2200), (9, 3)]);
        assert_eq!(
            Ports::touched(&odd).ranges(),
            ranges(&[(1024, 1151), (2048, 2239)])
        );
        assert_eq!(
            Ports::within(&odd).ranges(),
            ranges(&[(1024, 1087), (2048, 2175)])
        );
        assert_eq!(Ports::all().ranges(), ranges(&[(1024, 65535)]));
        assert_eq!(Ports::all().blocks(), 1008);
        assert_eq!(Ports::within(&Ports::all().pieces()), Ports::all());
        assert_eq!(Ports::all().pieces().len(), 32);
    }

    #[test]
    fn stretches_are_aligned_and_leave_large_ones_whole() {
        let all = Ports::all();
        let first = all.stretch(256, &Ports::NONE).expect("free");
        assert_eq!(
            first.ranges(),
            ranges(&[(16384, 32767)]),
            "the upper half stays whole"
        );
        let rest = all.minus(&first);
        assert_eq!(
            rest.stretch(512, &Ports::NONE).expect("free").ranges(),
            ranges(&[(32768, 65535)])
        );
        let small = all.stretch(1, &Ports::NONE).expect("free");
        assert_eq!(small.ranges(), ranges(&[(1984, 2047)]));
        let near = Ports::touched(&ranges(&[(49152, 65535)]));
        let beside = all.minus(&near).stretch(256, &near).expect("free");
        assert_eq!(beside.ranges(), ranges(&[(32768, 49151)]));
        assert!(small.stretch(2, &Ports::NONE).is_none());
    }

    #[test]
    fn half_is_never_all() {
        let half = |list: &[(u16, u16)]| Ports::touched(&ranges(list)).half().ranges();
        assert_eq!(half(&[(32768, 65535)]), ranges(&[(49152, 65535)]));
        assert_eq!(half(&[(1024, 1087)]), []);
        assert_eq!(half(&[(16384, 65535)]), ranges(&[(16384, 32767)]));
        assert_eq!(half(&[(2048, 2111), (4096, 4159)]).len(), 1);
        assert_eq!(half(&[(2048, 2111), (4096, 5119)]), ranges(&[(4608, 5119)]));
    }
}
