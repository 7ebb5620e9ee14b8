//! Lets the binary find a libkrunfw that lies beside it. Link arguments of a library crate reach no binary, so they are
//! given here.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let origin = match std::env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("macos") => "@loader_path",
        _ => "$ORIGIN",
    };
    println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{origin}");
}
