//! The way from the machine to the API servers: a port on 127.0.0.1 for each cluster.
//!
//! One process an arena. A connection is accepted in the machine's own namespace and dialled from inside the control
//! plane's, which is opened anew each time because a power cycle replaces it. So access doesn't depend on the wire
//! that a scenario may be breaking.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::{
    control_plane::API_PORT,
    node::{machine::arena_program, process::MARK},
    state::{Dirs, Plan},
    wire::netns,
};

/// How long a dial may take; the API server is one hop away.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Opens a port for each cluster and notes it in the plan.
pub fn open(plan: &mut Plan) -> Result<Vec<TcpListener>> {
    plan.clusters
        .iter_mut()
        .map(|cluster| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("open a port on 127.0.0.1")?;
            cluster.api_port = listener.local_addr()?.port();
            Ok(listener)
        })
        .collect()
}

/// Starts the forwarder with the open ports; it outlives this process.
pub fn spawn(dirs: &Dirs, plan: &Plan, listeners: &[TcpListener]) -> Result<()> {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dirs.disk().join("logs/forward.log"))?;
    let mut command = Command::new(arena_program()?);
    command.args(["internal", "forward"]);
    let mut inherited = Vec::new();
    for (cluster, listener) in plan.clusters.iter().zip(listeners) {
        inherited.push(listener.as_raw_fd());
        command.arg(format!(
            "{}={}={}",
            listener.as_raw_fd(),
            cluster.control_plane.netns,
            SocketAddr::new(cluster.api_address(), API_PORT)
        ));
    }
    command
        .env(MARK, dirs.mark())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // SAFETY: between fork and exec only setsid(2) and fcntl(2) are called, on descriptors the parent holds open.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            for fd in &inherited {
                let fd = std::os::fd::BorrowedFd::borrow_raw(*fd);
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        });
    }
    let mut child = command.spawn().context("start the forwarder")?;
    // It outlives this process or is killed by `down`; in the latter case it must not stay as a zombie.
    std::thread::spawn(move || child.wait());
    Ok(())
}

/// Serves until killed. Each target is `FD=NAMESPACE=ADDRESS`.
pub async fn serve(targets: &[String]) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for target in targets {
        let mut parts = target.splitn(3, '=');
        let (Some(fd), Some(ns), Some(address)) = (parts.next(), parts.next(), parts.next()) else {
            anyhow::bail!("target {target:?} isn't FD=NAMESPACE=ADDRESS");
        };
        let fd: RawFd = fd.parse()?;
        let address: SocketAddr = address.parse()?;
        // SAFETY: the descriptor was handed to this process for this purpose and is used nowhere else.
        let listener = TcpListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
        fcntl(listener.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        listener.set_nonblocking(true)?;
        tasks.spawn(accept(
            tokio::net::TcpListener::from_std(listener)?,
            ns.to_owned(),
            address,
        ));
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn accept(listener: tokio::net::TcpListener, ns: String, address: SocketAddr) -> Result<()> {
    loop {
        let (mut near, _) = listener.accept().await?;
        let ns = ns.clone();
        tokio::spawn(async move {
            match tokio::task::spawn_blocking(move || dial(&ns, address)).await {
                Ok(Ok(far)) => {
                    if let Ok(mut far) = tokio::net::TcpStream::from_std(far) {
                        let _either_side_may_reset = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                }
                // The client sees its connection closed, as from a dead API server.
                Ok(Err(e)) => {
                    tracing::debug!(error = format!("{e:#}"), %address, "API server can't be reached");
                }
                Err(e) => tracing::warn!(error = %e, "dialling ended"),
            }
        });
    }
}

fn dial(ns: &str, address: SocketAddr) -> Result<TcpStream> {
    netns::inside(ns, || {
        let stream = TcpStream::connect_timeout(&address, DIAL_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    })
}
