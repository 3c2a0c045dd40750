//! Links the program with packed relocations (`DT_RELR`): 1 KiB of them instead of 88 KiB, all of
//! which is read at the start. glibc has them since 2.36. A linker that does not know the option
//! ignores it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
