//! What the outside server saw.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, ErrorKind, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

pub use crate::probe::{Protocol, Record};
use crate::state::Dirs;

/// The record of the outside server.
#[derive(Debug, Clone)]
pub struct Outside {
    log: PathBuf,
}

/// A place in the record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

impl Outside {
    pub(super) fn new(dirs: &Dirs) -> Self {
        Self {
            log: dirs.outside().join("log.jsonl"),
        }
    }

    /// The record of the arena called `name`, which must exist.
    pub fn of(name: &str) -> Result<Self> {
        let dirs = Dirs::new(name)?;
        dirs.load_existing()?;
        Ok(Self::new(&dirs))
    }

    /// The log file, a JSON object a line.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The present end of the record.
    pub fn mark(&self) -> Result<Mark> {
        match std::fs::metadata(&self.log) {
            Ok(meta) => Ok(Mark(meta.len())),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Mark(0)),
            Err(e) => Err(e).with_context(|| format!("look at {}", self.log.display())),
        }
    }

    /// All that arrived since `mark`, oldest first.
    pub fn records_since(&self, mark: Mark) -> Result<Vec<Record>> {
        Ok(self.read(mark)?.0)
    }

    /// All that arrived since `mark`, and where to go on. A line that is being written is left for the next call.
    pub fn read(&self, mark: Mark) -> Result<(Vec<Record>, Mark)> {
        let mut file = match File::open(&self.log) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok((Vec::new(), mark)),
            Err(e) => return Err(e).with_context(|| format!("open {}", self.log.display())),
        };
        file.seek(SeekFrom::Start(mark.0))?;
        let mut reader = BufReader::new(file);
        let mut records = Vec::new();
        let mut next = mark;
        let mut line = String::new();
        while reader.read_line(&mut line)? > 0 && line.ends_with('\n') {
            records.push(serde_json::from_str(&line).with_context(|| format!("outside record {line:?}"))?);
            next.0 += line.len() as u64;
            line.clear();
        }
        Ok((records, next))
    }

    /// The records since `mark` whose payload holds `tag`.
    pub fn tagged_since(&self, mark: Mark, tag: &str) -> Result<Vec<Record>> {
        Ok(self
            .records_since(mark)?
            .into_iter()
            .filter(|r| r.payload.contains(tag))
            .collect())
    }
}
