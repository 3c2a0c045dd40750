//! Runs the target that the variable FUZZ_TARGET names under libFuzzer. `run` builds this program
//! with instrumentation.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    use std::sync::LazyLock;
    static TARGET: LazyLock<Option<fuzz::Target>> =
        LazyLock::new(|| std::env::var("FUZZ_TARGET").ok().and_then(|name| fuzz::target(&name)));
    match *TARGET {
        Some(target) => target(bytes),
        None => std::process::abort(),
    }
});

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("this build has no libFuzzer; run: tests/fuzz/run TARGET [SECONDS]");
}
