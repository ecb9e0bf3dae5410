//! Compiles `proto/link.proto` without needing protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/link.proto");
    let descriptors = protox::compile(["proto/link.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        // Holds the join token.
        .skip_debug(["spillway.link.v1.EnrollRequest"])
        .compile_fds(descriptors)?;
    Ok(())
}
