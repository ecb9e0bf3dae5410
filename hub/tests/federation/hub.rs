//! Replicas of the hub within the test's process.

use clap::Parser as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use spillway_hub::Args;
use spillway_link::pki::Pin;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::eventually;

/// One replica.
pub(crate) struct Replica {
    name: String,
    port: u16,
    stop: oneshot::Sender<()>,
    running: JoinHandle<anyhow::Result<()>>,
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

impl Replica {
    /// Starts one and waits until it listens.
    pub(crate) async fn start(client: &Client, name: &str) -> Self {
        let (port, http) = (free_port(), free_port());
        let args = Args::parse_from([
            "spillway-hub",
            "--replica-name",
            name,
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--http-listen",
            &format!("127.0.0.1:{http}"),
        ]);
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(spillway_hub::run(args, client.clone(), async {
            let _ = stopped.await;
        }));
        let replica = Self {
            name: name.into(),
            port,
            stop,
            running,
        };
        eventually("the replica listens", async || {
            assert!(!replica.running.is_finished(), "the replica ended");
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        replica
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        self.running.await.expect("no panic").expect("a clean end");
    }
}

/// The pin as the command line reads it.
pub(crate) async fn pin(client: &Client) -> Pin {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), spillway_crds::NAMESPACE);
    let info = api.get("spillway-hub-info").await.expect("published");
    info.data.expect("data")["ca_pin"].parse().expect("a pin")
}
