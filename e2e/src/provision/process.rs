//! Runs a long command and hands over its messages line by line while it runs.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;

/// How many of the last messages are kept for a failure's report.
const TAIL: usize = 30;

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// All of its standard output.
    pub(crate) stdout: String,
    /// The last lines of its standard error.
    pub(crate) tail: Vec<String>,
}

/// Runs `command` to its end. `on_line` gets each line of standard error, and `None` in each second without one.
///
/// # Errors
/// Only when the command can't be started or waited for; its own failure is in [`Finished::status`].
pub(crate) fn run(command: &mut Command, mut on_line: impl FnMut(Option<&str>)) -> anyhow::Result<Finished> {
    let program = command.get_program().to_string_lossy().into_owned();
    end_with_parent(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let output = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut stdout) = stdout {
            // A broken pipe here only shortens the output; the exit status tells.
            let _ = stdout.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let Some(stderr) = stderr else { return };
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            if sender
                .send(String::from_utf8_lossy(&line).trim_end().to_owned())
                .is_err()
            {
                return;
            }
        }
    });
    let mut tail = VecDeque::with_capacity(TAIL);
    loop {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                on_line(Some(&line));
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => on_line(None),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {program}"))?;
    let stdout = output.join().unwrap_or_default();
    Ok(Finished {
        status,
        stdout,
        tail: tail.into(),
    })
}

/// Has the kernel end the command when this thread dies: nobody would take up what an orphaned build leaves.
#[allow(unsafe_code)]
fn end_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes one system call; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_messages_and_status_are_kept_apart() {
        let mut seen = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; seq 1 40 >&2; exit 3"]);
        let finished = run(&mut command, |line| seen.extend(line.map(str::to_owned))).unwrap();
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.stdout, "out\n");
        assert_eq!(seen.len(), 40);
        assert_eq!(finished.tail.len(), TAIL);
        assert_eq!(finished.tail.last().map(String::as_str), Some("40"));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program"), |_| ()).unwrap_err();
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }
}
