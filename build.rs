//! Turns `proto/` into Rust. The compiler of the protocol files is a library, so that nobody has to install one.

use std::error::Error;

const PROTOCOL: &str = "proto/atlas/v1/atlas.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={PROTOCOL}");
    let descriptors = protox::compile([PROTOCOL], ["proto"])?;
    // Keys and values are taken out of a message without copying them.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
