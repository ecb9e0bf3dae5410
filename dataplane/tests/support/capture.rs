//! Everything that passes one place of a test's network.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use super::Namespace;

/// A capture that runs.
pub struct Capture {
    child: Child,
    file: tempfile::NamedTempFile,
}

impl Capture {
    /// Begins to capture on `device` of `namespace`; `any` stands for all of them.
    pub fn start(namespace: &Namespace, device: &str) -> Self {
        let file = tempfile::NamedTempFile::new().expect("file");
        let mut child = Command::new("ip")
            .args(["netns", "exec", &namespace.name, "tcpdump", "-Z", "root", "-U"])
            .args(["--immediate-mode", "-i", device, "-w"])
            .arg(file.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump");
        let said = child.stderr.take().expect("its messages");
        let mut said = BufReader::new(said).lines();
        let begun = said.find_map(|line| line.ok().filter(|l| l.contains("listening on")));
        assert!(begun.is_some(), "tcpdump ended before it began");
        // Its last words must not meet a closed pipe.
        std::thread::spawn(move || said.count());
        Self { child, file }
    }

    /// Ends it. Answers all bytes, and how many packets match `filter`, in tcpdump's language.
    pub fn stop(mut self, filter: &str) -> (Vec<u8>, usize) {
        let pid = self.child.id().to_string();
        let told = Command::new("kill").args(["-INT", &pid]).status().expect("kill");
        assert!(told.success(), "tcpdump has ended by itself");
        self.child.wait().expect("tcpdump ends");
        let bytes = std::fs::read(self.file.path()).expect("capture");
        let output = Command::new("tcpdump")
            .args(["-n", "-r"])
            .arg(self.file.path())
            .arg(filter)
            .output()
            .expect("tcpdump");
        let count = output
            .stdout
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .count();
        (bytes, count)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether `needle` can be read in `bytes`.
pub fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|w| w == needle)
}
