//! What the kernel tells of changes.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use super::{Namespace, eventually};

/// `ip monitor` and `nft monitor` over a while.
pub struct Monitor {
    children: [(Child, Reader); 2],
}

impl Monitor {
    /// Listens inside `node`.
    pub fn start(node: &Namespace) -> Self {
        let lines = [
            "exec stdbuf -oL ip monitor link address route rule",
            "exec stdbuf -oL nft monitor",
        ];
        let children = lines.map(|line| {
            let spawn = || {
                Command::new("sh")
                    .args(["-c", line])
                    .stdout(Stdio::piped())
                    .spawn()
            };
            let mut child = node.inside(spawn).expect("monitor");
            let reader = Reader::new(child.stdout.take().expect("pipe"));
            (child, reader)
        });
        let monitor = Self { children };
        monitor.hear(node);
        for (_, reader) in &monitor.children {
            reader.forget();
        }
        monitor
    }

    /// Waits until both have told of everything up to now.
    fn hear(&self, node: &Namespace) {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        eventually("both monitors tell of a change", || {
            node.run(&format!(
                "ip route add 198.18.{number}.0/24 dev lo; ip route del 198.18.{number}.0/24 dev lo; \
                 nft add table inet probe{number}; nft delete table inet probe{number}"
            ));
            let [(_, ip), (_, nft)] = &self.children;
            let deleted = [
                format!("Deleted 198.18.{number}.0/24"),
                format!("delete table inet probe{number}"),
            ];
            ip.text().contains(&deleted[0]) && nft.text().contains(&deleted[1])
        });
    }

    /// What was told of meanwhile.
    pub fn stop(self, node: &Namespace) -> String {
        self.hear(node);
        let text: String = self.children.iter().map(|(_, reader)| reader.text()).collect();
        text.lines()
            .filter(|l| {
                !["198.18.", "inet probe", "# new generation"]
                    .iter()
                    .any(|own| l.contains(own))
            })
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        for (child, _) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Collects what a pipe says.
struct Reader(std::sync::Arc<std::sync::Mutex<String>>);

impl Reader {
    fn new(mut pipe: impl std::io::Read + Send + 'static) -> Self {
        let text = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let into = text.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                into.lock()
                    .expect("text")
                    .push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Self(text)
    }

    fn text(&self) -> String {
        self.0.lock().expect("text").clone()
    }

    fn forget(&self) {
        self.0.lock().expect("text").clear();
    }
}
