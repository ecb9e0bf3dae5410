//! What an apply did, or would do, for logs and for people.

use std::fmt;

/// Whether something is put into the kernel or taken out.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Operation {
    /// Not there yet.
    Add,
    /// There, but not as wanted.
    Change,
    /// There, but not wanted.
    Remove,
}

/// One operation on one object.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Change {
    /// What is done.
    pub operation: Operation,
    /// To what, in the words of `ip` and `nft`, such as `route 203.0.113.10/32 dev spillway0 table 254`.
    pub object: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.operation {
            Operation::Add => '+',
            Operation::Change => '~',
            Operation::Remove => '-',
        };
        write!(f, "{sign} {}", self.object)
    }
}

/// Operations in the order in which they are done.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    list: Vec<Change>,
    /// Some of them repair what others had changed.
    repaired: bool,
}

impl Changes {
    /// Whether the kernel already holds what is wanted.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many operations.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// The operations.
    pub fn iter(&self) -> std::slice::Iter<'_, Change> {
        self.list.iter()
    }

    /// Whether something else was found in the kernel than what had been applied, so that packets may have gone
    /// another way meanwhile.
    pub fn repaired(&self) -> bool {
        self.repaired
    }

    /// Says so.
    #[must_use]
    pub(crate) fn into_repair(self) -> Self {
        Self {
            repaired: true,
            ..self
        }
    }

    /// Adds an operation.
    pub fn push(&mut self, operation: Operation, object: impl Into<String>) {
        self.list.push(Change {
            operation,
            object: object.into(),
        });
    }

    /// Appends all of `other`.
    pub fn extend(&mut self, other: Self) {
        self.list.extend(other.list);
        self.repaired |= other.repaired;
    }
}

impl<'a> IntoIterator for &'a Changes {
    type Item = &'a Change;
    type IntoIter = std::slice::Iter<'a, Change>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, change) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{change}")?;
        }
        Ok(())
    }
}
