//! The command line of `probe`.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::throughput::{self, Until};
use super::watch::{self, Plan};
use super::{client, flood, flows, icmp, server};

/// Sends test traffic and says which source address the other side saw.
#[derive(Parser, Debug)]
#[command(name = "probe", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Answer on TCP 7000-7004 and UDP 7000, and note who came
    Serve {
        /// Append a JSON line for each connection, SYN, datagram and echo request to this file
        #[arg(long)]
        log: Option<PathBuf>,
        /// Address to listen on; may be repeated [default: all]
        #[arg(long, num_args = 1..)]
        bind: Vec<IpAddr>,
        /// Add this to every port
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=58_000))]
        shift: u16,
    },
    /// Connect by TCP and print the source the server saw
    Tcp(Target),
    /// Send a datagram and print the source the server saw
    Udp(Target),
    /// Send an echo request
    Ping {
        /// Name or address
        host: String,
        #[command(flatten)]
        common: Common,
    },
    /// Attempt again and again, and report each attempt
    Watch {
        protocol: Transport,
        #[command(flatten)]
        target: Target,
        /// From the begin of one attempt to the next
        #[arg(long, default_value = "10ms", value_parser = duration)]
        interval: Duration,
        /// How many attempts; 0 for no end
        #[arg(long, default_value_t = 0)]
        count: u64,
        /// Use one connection (TCP) or source port (UDP) for all attempts; ends with an error when it breaks
        #[arg(long)]
        keep: bool,
        /// Print JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Send to a sink (port 7002) and print bytes and seconds as JSON
    Send(Transfer),
    /// Receive from a source (port 7003) and print bytes and seconds as JSON
    Recv(Transfer),
    /// Send datagrams as fast as they go to a sink (UDP port 7002) and print how many arrived as JSON
    Flood {
        /// Where to: HOST:PORT
        target: String,
        /// Bytes in each
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1400))]
        size: u16,
        /// How long
        #[arg(long, default_value = "3s", value_parser = duration)]
        time: Duration,
    },
    /// Hold many flows at once, check every byte, and print a JSON report at the end (SIGTERM, or --seconds)
    Flows(Flows),
    /// Wait for SIGTERM
    Sleep,
}

#[derive(Args, Debug)]
struct Flows {
    /// Servers: addresses without a port. Each gets all of the flows
    #[arg(required = true)]
    to: Vec<IpAddr>,
    /// TCP connections on which this side sends records and the server echoes them
    #[arg(long, default_value_t = 1)]
    driven: u32,
    /// TCP connections on which only the server sends
    #[arg(long, default_value_t = 1)]
    pushed: u32,
    /// UDP flows, each from one port
    #[arg(long, default_value_t = 1)]
    udp: u32,
    /// ICMP echo flows, each with one identifier
    #[arg(long, default_value_t = 1)]
    icmp: u32,
    /// From one record of a flow to its next
    #[arg(long, default_value = "10ms", value_parser = duration)]
    pace: Duration,
    /// Text for the server's log
    #[arg(long, default_value = "flows")]
    tag: String,
    /// List gaps from this length on
    #[arg(long, default_value = "50ms", value_parser = duration)]
    gap: Duration,
    /// How long until every flow must have had its first record
    #[arg(long, default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// How long the last records may take to arrive after the end
    #[arg(long, default_value = "30s", value_parser = duration)]
    drain: Duration,
    /// End after so many seconds instead of at SIGTERM
    #[arg(long)]
    seconds: Option<f64>,
    /// Add this to every port
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=58_000))]
    shift: u16,
}

#[derive(Args, Debug)]
struct Target {
    /// Where to: HOST:PORT, with brackets around an IPv6 address
    target: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Debug)]
struct Common {
    /// Text for the server's log, at most 64 bytes of it
    #[arg(long, default_value = "")]
    tag: String,
    /// How long one attempt may take
    #[arg(long, default_value = "1s", value_parser = duration)]
    timeout: Duration,
}

#[derive(Args, Debug)]
struct Transfer {
    /// Where to: HOST:PORT
    target: String,
    /// End after so many bytes
    #[arg(long, conflicts_with = "seconds")]
    bytes: Option<u64>,
    /// End after so many seconds [default: 5]
    #[arg(long)]
    seconds: Option<f64>,
    /// Connections side by side
    #[arg(long, default_value_t = 1)]
    streams: u16,
    /// How long connecting may take
    #[arg(long, default_value = "5s", value_parser = duration)]
    timeout: Duration,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

/// Runs the command line; exits with 1 and the reason on standard error when an attempt failed.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve { log, bind, shift } => {
            let any = || vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
            let addresses = if bind.is_empty() { any() } else { bind };
            // Before the threads start, so that none of them takes the signal.
            let signals = block_signals()?;
            server::start(&addresses, shift, log.as_deref())?;
            let listed: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            print(&format!("serving on {}", listed.join(", ")))?;
            signals.wait().context("cannot wait for a signal")?;
            Ok(())
        }
        Command::Sleep => {
            block_signals()?.wait().context("cannot wait for a signal")?;
            Ok(())
        }
        Command::Tcp(Target { target, common }) => {
            print(&client::tcp(client::resolve(&target)?, &common.tag, common.timeout)?.to_string())
        }
        Command::Udp(Target { target, common }) => {
            print(&client::udp(client::resolve(&target)?, &common.tag, common.timeout)?.to_string())
        }
        Command::Ping { host, common } => {
            let address = client::resolve_host(&host)?;
            let took = icmp::ping(address, &common.tag, common.timeout)?;
            print(&format!(
                "reply from {address} after {:.3} ms",
                took.as_secs_f64() * 1000.0
            ))
        }
        Command::Watch {
            protocol,
            target: Target { target, common },
            interval,
            count,
            keep,
            json,
        } => {
            exit_on_signals()?;
            let plan = Plan {
                target: client::resolve(&target)?,
                tcp: protocol == Transport::Tcp,
                tag: common.tag,
                interval,
                count,
                timeout: common.timeout,
                keep,
            };
            watch::watch(&plan, |attempt| {
                if json {
                    write_json(attempt)
                } else {
                    write_attempt(attempt)
                }
            })
        }
        Command::Flood { target, size, time } => {
            exit_on_signals()?;
            let target = client::resolve(&target)?;
            Ok(write_json(&flood::flood(target, size.into(), time)?)?)
        }
        Command::Flows(flows) => flows.run(),
        Command::Send(transfer) => {
            exit_on_signals()?;
            let target = client::resolve(&transfer.target)?;
            Ok(write_json(&throughput::send(
                target,
                transfer.until()?,
                transfer.streams,
                transfer.timeout,
            )?)?)
        }
        Command::Recv(transfer) => {
            exit_on_signals()?;
            let target = client::resolve(&transfer.target)?;
            Ok(write_json(&throughput::receive(
                target,
                transfer.until()?,
                transfer.streams,
                transfer.timeout,
            )?)?)
        }
    }
}

impl Flows {
    fn run(self) -> anyhow::Result<()> {
        let seconds = self
            .seconds
            .map(Duration::try_from_secs_f64)
            .transpose()
            .context("--seconds is out of range")?;
        // A tag stands in a line of its own words, and the server notes 64 bytes of it.
        anyhow::ensure!(
            !self.tag.contains('\n') && self.tag.len() <= 64,
            "--tag takes up to 64 bytes in one line"
        );
        anyhow::ensure!(!self.pace.is_zero(), "--pace can't be zero");
        let plan = flows::Plan {
            to: self.to,
            shift: self.shift,
            driven: self.driven,
            pushed: self.pushed,
            udp: self.udp,
            icmp: self.icmp,
            pace: self.pace,
            tag: self.tag,
            gap: self.gap,
            timeout: self.timeout,
            drain: self.drain,
        };
        let report = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async {
                let mut terminated = signal(SignalKind::terminate()).context("cannot wait for a signal")?;
                let mut interrupted = signal(SignalKind::interrupt()).context("cannot wait for a signal")?;
                let until = async {
                    let elapsed = async {
                        match seconds {
                            Some(seconds) => tokio::time::sleep(seconds).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        _ = terminated.recv() => {}
                        _ = interrupted.recv() => {}
                        () = elapsed => {}
                    }
                };
                flows::run(plan, |count| print(&format!("READY {count}")), until).await
            })?;
        Ok(write_json(&report)?)
    }
}

impl Transfer {
    fn until(&self) -> anyhow::Result<Until> {
        match self.bytes {
            Some(bytes) => Ok(Until::Bytes(bytes)),
            None => Ok(Until::Elapsed(
                Duration::try_from_secs_f64(self.seconds.unwrap_or(5.0))
                    .context("--seconds is out of range")?,
            )),
        }
    }
}

fn write_attempt(attempt: &watch::Attempt) -> io::Result<()> {
    let outcome = match (&attempt.src, &attempt.error) {
        (Some(source), _) => source.to_string(),
        (None, error) => error.clone().unwrap_or_default(),
    };
    writeln!(
        io::stdout().lock(),
        "{} {:8.3} ms  {outcome}",
        attempt.t,
        attempt.ms
    )
}

fn write_json(value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

fn print(line: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Blocks the signals that end a program, to be waited for. The first process of a container gets none otherwise.
fn block_signals() -> anyhow::Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("cannot block signals")?;
    Ok(signals)
}

/// Ends the process when it is told to, also as the first process of a container.
fn exit_on_signals() -> anyhow::Result<()> {
    let signals = block_signals()?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if signals.wait().is_ok() {
                std::process::exit(0);
            }
        })
        .context("cannot start a thread")?;
    Ok(())
}

/// Reads `10ms`, `1s`, `1m 30s`.
fn duration(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration = text
        .parse()
        .map_err(|error| format!("{error} (write it like 10ms or 1s)"))?;
    Duration::try_from(signed).map_err(|_| "a duration can't be negative".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        for line in [
            "probe serve --log /x --bind 198.51.100.10 2001:db8:51::10",
            "probe tcp 198.51.100.10:7000 --tag t --timeout 1s",
            "probe udp [2001:db8::1]:7000",
            "probe ping 198.51.100.10",
            "probe watch tcp 198.51.100.10:7000 --interval 10ms --count 5 --json --keep",
            "probe send 198.51.100.10:7002 --bytes 1000",
            "probe flows 198.51.100.10 2001:db8:51::10 --driven 50 --pushed 50 --pace 10ms --tag t",
            "probe sleep",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        assert!(Cli::try_parse_from(["probe", "send", "x:1", "--bytes", "1", "--seconds", "1"]).is_err());
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(duration("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(duration("1s"), Ok(Duration::from_secs(1)));
        assert!(duration("-1s").is_err() && duration("soon").is_err());
    }
}
