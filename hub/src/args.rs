//! What can be set from outside.

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};
use ipnet::{Ipv4Net, Ipv6Net};
use spillway_core::alloc::{OverlayRange, RangeTooSmall};
use spillway_crds::member::Tunnel;

/// Controller of a Spillway federation.
#[derive(Clone, Debug, Parser)]
#[command(name = "spillway-hub", version)]
pub struct Args {
    /// Namespace of the hub's own objects.
    #[arg(long, env = "POD_NAMESPACE", default_value = spillway_crds::NAMESPACE)]
    pub namespace: String,

    /// Name of this replica, unique among them: the pod's name.
    #[arg(long, env = "POD_NAME")]
    pub replica_name: String,

    /// host:port under which members reach the hub, in the order in which they try them.
    #[arg(long, env = "SPILLWAY_ENDPOINTS", value_delimiter = ',')]
    pub endpoints: Vec<String>,

    /// Where members are served.
    #[arg(long, default_value = "[::]:9443")]
    pub listen: SocketAddr,

    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, default_value = "[::]:8080")]
    pub http_listen: SocketAddr,

    /// IPv4 range of overlay addresses, /10 or shorter.
    #[arg(long, default_value_t = OverlayRange::default().v4())]
    pub overlay_ipv4: Ipv4Net,

    /// IPv6 range of overlay addresses, /52 or shorter.
    #[arg(long, default_value_t = OverlayRange::default().v6())]
    pub overlay_ipv6: Ipv6Net,

    /// VXLAN network identifier of the tunnel.
    #[arg(long, default_value_t = Tunnel::default().vni, value_parser = clap::value_parser!(u32).range(1..=0x00ff_ffff))]
    pub vni: u32,

    /// UDP port of the tunnel, clear of the CNI's own.
    #[arg(long, default_value_t = Tunnel::default().port, value_parser = clap::value_parser!(u16).range(1..))]
    pub tunnel_port: u16,

    /// UDP port of WireGuard, under encrypted paths.
    #[arg(long, default_value_t = Tunnel::default().wireguard_port, value_parser = clap::value_parser!(u16).range(1..))]
    pub wireguard_port: u16,

    /// Which paths of the tunnel are encrypted, where a gateway doesn't say it itself.
    #[arg(long, env = "SPILLWAY_ENCRYPTION", value_enum, default_value_t = Encryption::CrossPartition)]
    pub encryption: Encryption,

    /// What to log: a level, or a filter such as info,spillway_hub=debug.
    #[arg(long, env = "SPILLWAY_LOG", default_value = "info")]
    pub log: String,

    /// How to log.
    #[arg(long, env = "SPILLWAY_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// See [`spillway_crds::hub::Encryption`].
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Encryption {
    /// All of them.
    Always,
    /// Those between members of different partitions.
    CrossPartition,
    /// None.
    Never,
}

impl From<Encryption> for spillway_crds::hub::Encryption {
    fn from(encryption: Encryption) -> Self {
        match encryption {
            Encryption::Always => Self::Always,
            Encryption::CrossPartition => Self::CrossPartition,
            Encryption::Never => Self::Never,
        }
    }
}

/// Form of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// A line an event, for people.
    Text,
    /// A JSON object an event.
    Json,
}

impl Args {
    /// The overlay range.
    pub fn overlay(&self) -> Result<OverlayRange, RangeTooSmall> {
        OverlayRange::new(self.overlay_ipv4, self.overlay_ipv6)
    }

    /// The tunnel's parameters.
    pub fn tunnel(&self) -> Tunnel {
        Tunnel {
            vni: self.vni,
            port: self.tunnel_port,
            wireguard_port: self.wireguard_port,
        }
    }
}
