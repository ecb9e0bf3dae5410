//! Bringing up an arena whose machines are kind's containers.

use std::{fs, process::Command, sync::Arc};

use anyhow::{Context as _, Result, bail};

use super::{
    forward, images,
    up::{self, Context},
};
use crate::{
    kind::{self, Docker},
    node::{machine::Machine, process::MARK},
    pki::write_private,
    provision::{KindTools, process},
    state::{ClusterPlan, Plan, Provider},
    wire,
};

/// Builds what `plan` says, and completes it with the addresses that Docker gives.
pub(super) async fn build(context: &Arc<Context>, tools: KindTools, plan: &mut Plan) -> Result<()> {
    let listeners = forward::open(plan)?;
    for cluster in &mut plan.clusters {
        cluster.kubectl = context.toolbox.kubernetes(&cluster.spec.kubernetes, "kubectl");
    }
    let docker = match &tools.own {
        Some(own) => Docker::own(&context.dirs, own),
        None => Docker::Found,
    };
    plan.docker = Some(docker.clone());
    context.dirs.create()?;
    context.dirs.save(plan)?;
    {
        let (context, docker, plan, tools) = (context.clone(), docker.clone(), plan.clone(), tools.clone());
        tokio::task::spawn_blocking(move || ground(&context, &docker, &tools, &plan)).await??;
    }

    let shared = Arc::new(plan.clone());
    up::every_cluster(&shared, |index| {
        let (context, plan) = (context.clone(), shared.clone());
        let (kind, docker) = (tools.kind.clone(), docker.clone());
        async move {
            tokio::task::spawn_blocking(move || {
                create(&context, &kind, &docker, &plan, &plan.clusters[index])
            })
            .await?
        }
    })
    .await?;
    adopt_all(context, &docker, plan)?;
    context.dirs.save(plan)?;
    forward::spawn(&context.dirs, plan, &listeners)?;

    let shared = Arc::new(plan.clone());
    up::every_cluster(&shared, |index| {
        let (context, plan) = (context.clone(), shared.clone());
        async move {
            let cluster = &plan.clusters[index];
            let furnished = {
                let (context, plan, cluster) = (context.clone(), plan.clone(), cluster.clone());
                tokio::task::spawn_blocking(move || furnish(&context, &plan, &cluster))
            };
            let (furnished, ready) = tokio::join!(furnished, up::cluster_ready(&context, cluster));
            furnished??;
            ready
        }
    })
    .await
}

/// What the clusters stand on: Docker on the wire, the router beside it, the outside server behind that.
fn ground(context: &Context, docker: &Docker, tools: &KindTools, plan: &Plan) -> Result<()> {
    let say = |line: &str| context.clock.say(line);
    if let Some(own) = &tools.own {
        let version = plan.clusters.first().context("no cluster")?.spec.kubernetes;
        wire::build_switch(plan)?;
        let tools = (tools.kind.as_path(), own);
        kind::start(&context.dirs, &context.toolbox, tools, version, plan, say)?;
        say("a Docker of its own, with the node image");
    } else {
        say("using this machine's Docker, and the node image that kind names");
        wire::borrow_switch(plan)?;
    }
    kind::make_network(docker, plan)?;
    wire::build_router(plan)?;
    up::boot_outside(context, plan)?;
    say("wire, router and outside server");
    Ok(())
}

/// Has kind create a cluster; what it says is in the cluster's log.
fn create(
    context: &Context,
    program: &std::path::Path,
    docker: &Docker,
    plan: &Plan,
    cluster: &ClusterPlan,
) -> Result<()> {
    let name = &cluster.spec.name;
    let logs = context.dirs.logs("kind");
    fs::create_dir_all(&logs)?;
    let config = logs.join(format!("{name}.yaml"));
    fs::write(&config, kind::configuration(plan, cluster))?;
    let kubeconfig = context.dirs.kubeconfig(name);
    let mut command = Command::new(program);
    docker.prepare(&mut command);
    command
        .args(["create", "cluster", "--retain", "--verbosity=3"])
        .args(["--name", &kind::cluster_name(plan, cluster)])
        .arg("--config")
        .arg(&config)
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .env("KIND_EXPERIMENTAL_PROVIDER", "docker")
        .env("KIND_EXPERIMENTAL_DOCKER_NETWORK", kind::network(plan))
        .env(MARK, context.dirs.mark());
    if plan.provider == Provider::Kind {
        command.args(["--image", &kind::reference(cluster.spec.kubernetes)]);
    }
    // kind hands them on to its nodes, which reach nobody's proxy.
    for proxy in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    ] {
        command.env_remove(proxy);
    }
    let mut log = String::new();
    let finished = process::run(&mut command, |line| {
        let Some(line) = line else { return };
        log.push_str(line);
        log.push('\n');
        if let Some(step) = line.trim().strip_prefix('\u{2713}') {
            context.clock.say(&format!("{name}: {}", step.trim()));
        }
    })?;
    let file = logs.join(format!("{name}.log"));
    fs::write(&file, log)?;
    if !finished.status.success() {
        bail!(
            "kind: {}, and all it said is in {}\n{}",
            finished.status,
            file.display(),
            finished.tail.join("\n")
        );
    }
    reach(&kubeconfig, cluster)
}

/// Points a kubeconfig at the arena's own way to the API server: kind's is in Docker's network.
fn reach(kubeconfig: &std::path::Path, cluster: &ClusterPlan) -> Result<()> {
    let text = fs::read_to_string(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
    write_private(kubeconfig, &with_server(&text, cluster.api_port))
}

fn with_server(kubeconfig: &str, port: u16) -> String {
    kubeconfig
        .lines()
        .map(|line| match line.split_once("server: ") {
            Some((indent, _)) => format!("{indent}server: https://127.0.0.1:{port}\n"),
            None => format!("{line}\n"),
        })
        .collect()
}

/// Makes every container a machine of the arena.
fn adopt_all(context: &Context, docker: &Docker, plan: &mut Plan) -> Result<()> {
    let planned = plan.clone();
    for (cluster, known) in plan.clusters.iter_mut().zip(&planned.clusters) {
        let adopt = |machine: &mut crate::state::MachinePlan| -> Result<()> {
            let container = kind::container_name(&planned, known, machine);
            kind::adopt(&context.dirs, &planned, &container, docker, machine)
        };
        for node in &mut cluster.nodes {
            adopt(&mut node.machine)?;
        }
        if let Some(node) = &mut cluster.control_plane_node {
            adopt(&mut node.machine)?;
            cluster.control_plane = node.machine.clone();
        } else if let Some(only) = cluster.nodes.first() {
            cluster.control_plane = only.machine.clone();
        }
    }
    Ok(())
}

/// Gives a cluster's nodes their CNI and the images that all arenas have.
fn furnish(context: &Context, plan: &Plan, cluster: &ClusterPlan) -> Result<()> {
    for node in cluster.kubernetes_nodes() {
        kind::configure_network(&context.dirs, plan, cluster, node)?;
        let machine = Machine::new(&node.machine.name, context.dirs.machine(&node.machine.name));
        images::import(&machine, &context.images)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_the_server_of_a_kubeconfig_changes() {
        let text = "clusters:\n- cluster:\n    server: https://127.0.0.1:4711\n  name: a\n";
        let changed = super::with_server(text, 99);
        assert_eq!(changed, text.replace("4711", "99"));
    }
}
