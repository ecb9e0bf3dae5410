//! Everything that passes between a partition and the router, kept in a file.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::NamedTempFile;

use super::Federation;

/// A capture that runs.
pub struct Capture {
    child: Child,
    file: NamedTempFile,
}

/// What was captured.
pub struct Captured {
    file: NamedTempFile,
    bytes: Vec<u8>,
}

impl Federation {
    /// Begins to capture what passes between partition `partition` and the router.
    pub fn capture(&self, partition: u8) -> Result<Capture> {
        self.capture_of(partition, "")
    }

    /// The same without what goes to the outside or comes from there.
    pub fn capture_between(&self, partition: u8) -> Result<Capture> {
        self.capture_of(partition, "not net 198.51.100.0/24 and not net 2001:db8:51::/64")
    }

    fn capture_of(&self, partition: u8, filter: &str) -> Result<Capture> {
        let wire = self.arena.plan().wire_netns();
        let file = NamedTempFile::new()?;
        let mut child = Command::new("ip")
            .args([
                "netns",
                "exec",
                &wire,
                "tcpdump",
                "-Z",
                "root",
                "-U",
                "--immediate-mode",
                "-i",
            ])
            .arg(format!("router-{partition}"))
            .arg("-w")
            .arg(file.path())
            .arg(filter)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("tcpdump, which the arena installs")?;
        let said = child.stderr.take().context("tcpdump's messages")?;
        let mut said = BufReader::new(said).lines();
        let begun = said.find_map(|line| line.ok().filter(|l| l.contains("listening on")));
        ensure!(begun.is_some(), "tcpdump ended before it began");
        // Its last words must not meet a closed pipe.
        std::thread::spawn(move || said.count());
        Ok(Capture { child, file })
    }
}

impl Capture {
    /// Whether `text` has been captured so far; what passed before it has been, too.
    pub fn holds(&self, text: &str) -> Result<bool> {
        Ok(holds(&std::fs::read(self.file.path())?, text))
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<Captured> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGINT)?;
        self.child.wait()?;
        let bytes = std::fs::read(self.file.path())?;
        let file = std::mem::replace(&mut self.file, NamedTempFile::new()?);
        Ok(Captured { file, bytes })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _ended_already = self.child.wait();
    }
}

impl Captured {
    /// Whether somebody who listens there could have read `text`.
    pub fn holds(&self, text: &str) -> bool {
        holds(&self.bytes, text)
    }

    /// How many UDP packets had that destination port.
    pub fn udp_to(&self, port: u16) -> Result<usize> {
        let output = Command::new("tcpdump")
            .args(["-n", "-r"])
            .arg(self.file.path())
            .arg(format!("udp dst port {port}"))
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output
            .stdout
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .count())
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}
