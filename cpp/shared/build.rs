//! A shared object shows the program its table and nothing else: all other names are of archives, and stay inside.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
}
