//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use spillway_crds::member::NodeRef;
use spillway_link::pki::Pin;

use crate::output::Format;
use crate::wait::duration;
use crate::words::{Assignment, Endpoint, Label, ServiceType};

/// Federated Kubernetes egress: which pods leave through which gateway with which IP, across clusters.
#[derive(Debug, Parser)]
#[command(
    name = "spillway",
    version,
    max_term_width = 110,
    arg_required_else_help = true
)]
pub struct Arguments {
    /// Which cluster to work on.
    #[command(flatten)]
    pub target: Target,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster to work on.
#[derive(Args, Clone, Debug, Default)]
pub struct Target {
    /// Kubeconfig file; else $KUBECONFIG, else ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; else its current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The hub, which decides for all members.
    #[command(subcommand)]
    Hub(HubCommand),
    /// Join tokens, made in the hub cluster.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Join this cluster to a federation, with what `spillway token create` printed.
    Join(Join),
    /// Take this cluster out of its federation and remove Spillway from it.
    Leave(Leave),
    /// How the federation, or this member, is doing, what is wrong and how to fix it.
    Status(Status),
    /// Before an install: is the cluster fit for it? After: what nobody looks at before it hurts. Each finding with
    /// its fix.
    Check(Check),
    /// Everything that is needed to find out what happened, in one archive, without secrets.
    Gather(Gather),
    /// Which node answers for which egress IP, and moving them to a node or away from it.
    #[command(subcommand)]
    Failover(FailoverCommand),
    /// Print another product's policies in Spillway's words. Changes nothing.
    #[command(subcommand)]
    Migrate(MigrateCommand),
    /// Versions of this program, the hub and the members.
    Version(Version),
    /// Print a completion script.
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Print the reference of all commands as Markdown.
    #[command(hide = true)]
    Reference,
}

/// Commands on the hub.
#[derive(Debug, Subcommand)]
pub enum HubCommand {
    /// Install or upgrade the hub in this cluster.
    Install(HubInstall),
    /// Remove the hub from this cluster. What nodes have programmed stays.
    Uninstall(HubUninstall),
    /// Replace the hub's CA by a new one while everything runs, and wait until that is done. Join commands printed
    /// before are void.
    RotateCa(HubRotateCa),
    /// Write all that the hub is into one file, CA's key included: for the day on which its cluster is lost.
    Backup(HubBackup),
    /// Make the hub of this cluster the one of a backup. Members come back by themselves.
    Restore(HubRestore),
}

/// Where the images come from.
#[derive(Args, Clone, Debug, Default)]
pub struct Image {
    /// Registry and path before the images' names [default: docker.io/spillway].
    #[arg(long, value_name = "REGISTRY", overrides_with = "image_registry")]
    pub image_registry: Option<String>,
    /// Tag of the images [default: this program's version].
    #[arg(long, value_name = "TAG", overrides_with = "image_tag")]
    pub image_tag: Option<String>,
    /// A value of the chart, such as log=debug; may be repeated. An unknown key lists the known ones.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<Assignment>,
}

/// `spillway hub install`.
#[derive(Args, Debug)]
pub struct HubInstall {
    /// Where members reach the hub; may be repeated, tried in order. Left out, it is found from the Service.
    #[arg(long = "endpoint", value_name = "HOST:PORT")]
    pub endpoints: Vec<Endpoint>,
    /// Hub replicas [default: 2].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub replicas: Option<u16>,
    /// How the hub's Service is published [default: ClusterIP].
    #[arg(long, value_name = "TYPE")]
    pub service_type: Option<ServiceType>,
    /// The port on every node, for NodePort and LoadBalancer.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub node_port: Option<u16>,
    /// Where the images come from.
    #[command(flatten)]
    pub image: Image,
    /// Change nothing; print the objects that would be applied.
    #[arg(long)]
    pub dry_run: bool,
    /// Format of the objects that --dry-run prints [default: yaml].
    #[arg(short, long, requires = "dry_run")]
    pub output: Option<Format>,
    /// Wait until the hub serves.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait.
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
}

/// `spillway hub uninstall`.
#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct HubUninstall {
    /// Also delete the definitions, and with them every member, gateway and policy.
    #[arg(long)]
    pub delete_policies: bool,
    /// Go on although members are joined. They keep the plan they have.
    #[arg(long)]
    pub force: bool,
    /// Don't ask on a terminal.
    #[arg(short, long)]
    pub yes: bool,
    /// Change nothing; print what would be deleted.
    #[arg(long)]
    pub dry_run: bool,
    /// How long to wait.
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
}

/// `spillway hub rotate-ca`.
#[derive(Args, Debug)]
pub struct HubRotateCa {
    /// Go on without this member, which must join again afterwards unless it is connected; may be repeated.
    #[arg(long, value_name = "MEMBER")]
    pub without: Vec<String>,
    /// Don't ask on a terminal.
    #[arg(short, long)]
    pub yes: bool,
    /// How long to wait. The rotation goes on all the same.
    #[arg(long, default_value = "10m", value_parser = duration)]
    pub timeout: Duration,
}

/// `spillway hub backup`.
#[derive(Args, Debug)]
pub struct HubBackup {
    /// The file, which must not exist yet; - is standard output.
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
}

/// `spillway hub restore`.
#[derive(Args, Debug)]
pub struct HubRestore {
    /// What `spillway hub backup` wrote.
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
    /// Don't ask on a terminal.
    #[arg(short, long)]
    pub yes: bool,
    /// How long to wait for the hub to stop.
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
}

/// Commands on join tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a one-time token and print the command that joins a cluster with it.
    Create(TokenCreate),
    /// List tokens. Their secrets are nowhere stored.
    List(TokenList),
    /// Make the tokens of a member unusable.
    Revoke(TokenRevoke),
}

/// `spillway token create`.
#[derive(Args, Debug)]
pub struct TokenCreate {
    /// Name that the cluster gets in the federation: lower-case letters, digits and dashes, at most 63.
    #[arg(value_parser = crate::words::member_name)]
    pub name: String,
    /// Label of the member, for policies to select by; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<Label>,
    /// Network partition that the cluster's nodes are in.
    #[arg(long, default_value = "default", value_parser = crate::words::member_name)]
    pub partition: String,
    /// How long the token can be used.
    #[arg(long, default_value = "1h", value_parser = duration)]
    pub ttl: Duration,
    /// Let a cluster take over a name that has joined before.
    #[arg(long)]
    pub rejoin: bool,
    /// Where the cluster reaches the hub, if not as the hub was installed; may be repeated.
    #[arg(long = "endpoint", value_name = "HOST:PORT")]
    pub endpoints: Vec<Endpoint>,
    /// Print the parts instead of the command.
    #[arg(short, long)]
    pub output: Option<Format>,
}

/// `spillway token list`.
#[derive(Args, Debug)]
pub struct TokenList {
    /// Format for programs.
    #[arg(short, long)]
    pub output: Option<Format>,
}

/// `spillway token revoke`.
#[derive(Args, Debug)]
pub struct TokenRevoke {
    /// The member's name, or a token's ID as `spillway token list` shows it.
    pub name: String,
}

/// `spillway join`.
#[derive(Args, Debug)]
pub struct Join {
    /// Name of this cluster in the federation, as given to `spillway token create`.
    #[arg(value_parser = crate::words::member_name)]
    pub name: String,
    /// Where the hub is; may be repeated, tried in order.
    #[arg(long = "endpoint", value_name = "HOST:PORT", required = true)]
    pub endpoints: Vec<Endpoint>,
    /// sha256:… of the hub's CA, checked before the token is sent.
    #[arg(long = "ca-pin", alias = "pin", value_name = "SHA256")]
    pub pin: Pin,
    /// The token. Other users of this machine can read it from the process list: better use $SPILLWAY_TOKEN
    /// or --token-file.
    #[arg(
        long,
        env = "SPILLWAY_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    pub token: Option<String>,
    /// File with the token; - is stdin.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Where the images come from.
    #[command(flatten)]
    pub image: Image,
    /// Change nothing: check rights and print the objects that would be applied, without the token.
    #[arg(long)]
    pub dry_run: bool,
    /// Format of the objects that --dry-run prints [default: yaml], or of the result.
    #[arg(short, long)]
    pub output: Option<Format>,
    /// How long to wait for the first plan and all node agents.
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
}

/// `spillway leave`.
#[derive(Args, Debug)]
pub struct Leave {
    /// Leave although the hub doesn't answer or agents are gone.
    #[arg(long)]
    pub force: bool,
    /// Don't ask on a terminal.
    #[arg(short, long)]
    pub yes: bool,
    /// Change nothing; print what would be deleted.
    #[arg(long)]
    pub dry_run: bool,
    /// How long to wait for the nodes and the hub.
    #[arg(long, default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
}

/// `spillway status`.
#[derive(Args, Debug)]
pub struct Status {
    /// Format for programs.
    #[arg(short, long)]
    pub output: Option<Format>,
    /// Exit with 13 where something is wrong.
    #[arg(long)]
    pub check: bool,
}

/// A side of the federation.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Side {
    /// The hub's cluster.
    Hub,
    /// A member.
    Member,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hub => "hub",
            Self::Member => "member",
        })
    }
}

/// `spillway check`.
#[derive(Args, Debug)]
pub struct Check {
    /// Check what an install of this side needs; left out, both are where nothing is installed.
    #[arg(long, value_name = "SIDE")]
    pub before: Option<Side>,
    /// Exit with 13 for warnings, too.
    #[arg(long)]
    pub strict: bool,
    /// Format for programs.
    #[arg(short, long)]
    pub output: Option<Format>,
}

/// `spillway gather`.
#[derive(Args, Debug)]
pub struct Gather {
    /// Where to write it; must not exist yet [default: spillway-CONTEXT-TIME.tar.gz].
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// How far back logs go.
    #[arg(long, default_value = "24h", value_parser = duration)]
    pub since: Duration,
}

/// Commands on what gateways' nodes hold.
#[derive(Debug, Subcommand)]
pub enum FailoverCommand {
    /// Which node answers for which egress IP, since when, and why it moved there.
    Status(FailoverStatus),
    /// Move all egress IPs and traffic away from a node of this cluster, and wait until they are.
    Drain(FailoverDrain),
    /// Let a drained node take its place again.
    Undrain(FailoverUndrain),
    /// Move an egress IP to a node of its gateway and keep it there while that node can hold it; in the hub's cluster. No
    /// connection is lost.
    #[command(visible_alias = "move")]
    Pin(FailoverPin),
    /// Let a gateway's nodes decide again who answers for an egress IP; in the hub's cluster.
    Unpin(FailoverUnpin),
}

/// `spillway failover status`.
#[derive(Args, Debug)]
pub struct FailoverStatus {
    /// Only this gateway; in the hub's cluster.
    #[arg(long, value_name = "NAME")]
    pub gateway: Option<String>,
    /// Format for programs.
    #[arg(short, long)]
    pub output: Option<Format>,
}

/// `spillway failover drain`.
#[derive(Args, Debug)]
pub struct FailoverDrain {
    /// Kubernetes name of the node.
    pub node: String,
    /// How long to wait.
    #[arg(long, default_value = "1m", value_parser = duration)]
    pub timeout: Duration,
}

/// `spillway failover undrain`.
#[derive(Args, Debug)]
pub struct FailoverUndrain {
    /// Kubernetes name of the node.
    pub node: String,
}

/// `spillway failover pin`.
#[derive(Args, Debug)]
pub struct FailoverPin {
    /// The egress IP.
    pub address: IpAddr,
    /// The node, as `spillway failover status` has it.
    #[arg(value_name = "MEMBER/NODE", value_parser = crate::words::node)]
    pub node: NodeRef,
    /// Its gateway; needed where no policy leaves with the address yet.
    #[arg(long, value_name = "NAME")]
    pub gateway: Option<String>,
    /// How long to wait until the node answers for it.
    #[arg(long, default_value = "1m", value_parser = duration)]
    pub timeout: Duration,
}

/// `spillway failover unpin`.
#[derive(Args, Debug)]
pub struct FailoverUnpin {
    /// The egress IP.
    pub address: IpAddr,
}

/// Products whose objects can be read.
#[derive(Debug, Subcommand)]
pub enum MigrateCommand {
    /// EgressGateway, EgressPolicy and EgressClusterPolicy of egressgateway.spidernet.io, from this cluster or from files. What
    /// has no equivalent is said on stderr and in comments.
    Egressgateway(MigrateEgressGateway),
}

/// `spillway migrate egressgateway`.
#[derive(Args, Debug)]
pub struct MigrateEgressGateway {
    /// Name of the member that the objects come from, for the gateways' nodes.
    #[arg(long, value_name = "NAME", value_parser = crate::words::member_name)]
    pub member: String,
    /// Label of the members that the policies are for; may be repeated. Left out, they are for all members.
    #[arg(long = "member-label", value_name = "KEY=VALUE")]
    pub member_labels: Vec<Label>,
    /// File with the objects, YAML or JSON, instead of the cluster; may be repeated; - is stdin.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// `spillway version`.
#[derive(Args, Debug)]
pub struct Version {
    /// Ask no cluster.
    #[arg(long)]
    pub client: bool,
    /// Format for programs.
    #[arg(short, long)]
    pub output: Option<Format>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
