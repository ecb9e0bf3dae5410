//! What Prometheus' own clients say of every process, under the same names.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::info::Info;

use crate::book::{Book, LiveGauge};

/// Clock ticks a second in /proc, which Linux fixes for user space on every architecture (`USER_HZ`).
const TICKS: f64 = 100.0;

pub(crate) struct Process {
    cpu: Counter<f64, AtomicU64>,
    memory: LiveGauge,
    files: LiveGauge,
}

impl Process {
    pub(crate) fn new(book: &mut Book) -> Self {
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        let about = "Always 1; the version is in the label";
        book.other(("spillway_build_info", "info", about), &["version"], version);
        let cpu = Counter::default();
        let about = "Processor time that the process has used";
        book.other(("process_cpu_seconds_total", "counter", about), &[], cpu.clone());
        let started = book.gauge(
            "process_start_time_seconds",
            "When the process began, in Unix time",
        );
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        started.set(now.map_or(0.0, |since| since.as_secs_f64()));
        Self {
            cpu,
            memory: book.gauge(
                "process_resident_memory_bytes",
                "Memory that the process occupies",
            ),
            files: book.gauge("process_open_fds", "Files and sockets that the process has open"),
        }
    }

    pub(crate) fn refresh(&self) {
        if let Some(seconds) = fs::read_to_string("/proc/self/stat").ok().and_then(|s| cpu(&s)) {
            self.cpu.inner().store(seconds.to_bits(), Ordering::Relaxed);
        }
        if let Some(bytes) = fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|s| resident(&s))
        {
            self.memory.set(bytes);
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            let count = u32::try_from(files.count()).unwrap_or(u32::MAX);
            self.files.set(f64::from(count));
        }
    }
}

/// Fields 14 and 15 of proc_pid_stat(5). The second field, the name, may hold anything, but ends at the last `)`.
fn cpu(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / TICKS)
}

/// `VmRSS` of proc_pid_status(5), which counts kibibytes whatever the page size.
fn resident(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 3 0 100 1 2";
        assert_eq!(cpu(stat), Some(2.0));
        assert_eq!(cpu("nonsense"), None);
        assert_eq!(resident("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2_097_152.0));
    }
}
