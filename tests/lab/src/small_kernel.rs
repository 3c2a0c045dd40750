//! Builds the small kernel from Debian's source package, once.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use sha2::{Digest as _, Sha256};

use crate::cache::Cache;
use crate::command::{Tool, last_lines, shown};
use crate::kernel::KernelFiles;
use crate::{Error, packages, say};

/// The options beyond `make tinyconfig`, with reasons.
const OPTIONS: &str = include_str!("../kernel.config");

/// Debian's package of the source.
const PACKAGE: &str = "linux-source-6.12";

/// Where KVM decides to send itself an interrupt before it enters L2.
const KICK: &str = "if (force_immediate_exit)\n";

/// The same, for injections too.
const KICK_ON_INJECTION: &str = "if (force_immediate_exit || svm->vmcb->control.event_inj)\n";

/// How many lines of make's output pass between two signs of life.
const LINES_PER_SIGN: usize = 400;

/// The kernel; built if these options have not been built yet. Everything is built in, so it has no modules.
pub fn files(cache: &Cache) -> Result<KernelFiles, Error> {
    let folder = cache.entry(
        &format!("linux-small-{}", fingerprint(&[OPTIONS, KICK_ON_INJECTION].concat())),
        |draft| build(cache, draft),
    )?;
    Ok(KernelFiles { image: folder.join("bzImage"), l1_modules: Vec::new(), folder })
}

fn build(cache: &Cache, draft: &Path) -> Result<(), Error> {
    packages::ensure(packages::KERNEL_BUILD)?;
    let work = cache.scratch()?;
    let source = work.path().join("linux");
    unpack_source(work.path(), &source)?;
    guard_injections(&source)?;
    configure(&source)?;
    compile(&source)?;
    for (from, to) in
        [("arch/x86/boot/bzImage", "bzImage"), ("vmlinux", "vmlinux"), (".config", "config")]
    {
        fs::copy(source.join(from), draft.join(to))
            .map_err(Error::file("copy", source.join(from)))?;
    }
    Ok(())
}

fn unpack_source(work: &Path, source: &Path) -> Result<(), Error> {
    packages::unpack(PACKAGE, work)?;
    fs::create_dir(source).map_err(Error::file("create", source))?;
    let archive = work.join("usr/src").join(format!("{PACKAGE}.tar.xz"));
    Tool::new("tar").args(["--strip-components=1", "-xf"]).args([&archive]).folder(source).run()
}

/// Has KVM leave L2 right after each injection, as it does for its own purposes already: the agent's `guard`
/// says why this emulation needs it, and does it for kernels that are as they are.
fn guard_injections(source: &Path) -> Result<(), Error> {
    let path = source.join("arch/x86/kvm/svm/svm.c");
    let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let guarded = text.replacen(KICK, KICK_ON_INJECTION, 1);
    if guarded == text {
        return Err(Error::NoGuard(path));
    }
    fs::write(&path, guarded).map_err(Error::file("write", &path))
}

fn configure(source: &Path) -> Result<(), Error> {
    let ours = source.join("lab.config");
    fs::write(&ours, OPTIONS).map_err(Error::file("write", &ours))?;
    make(source).args(["tinyconfig"]).run()?;
    let merge = source.join("scripts/kconfig/merge_config.sh");
    Tool::new(merge).args(["-m", ".config", "lab.config"]).folder(source).run()?;
    make(source).args(["olddefconfig"]).run()?;
    let result = source.join(".config");
    let result = fs::read_to_string(&result).map_err(Error::file("read", &result))?;
    for option in not_taken(OPTIONS, &result) {
        say(&format!("note: this kernel does not take {option}"));
    }
    Ok(())
}

/// Options that were asked for and are not in the configuration that came of it.
fn not_taken<'a>(asked: &'a str, result: &str) -> Vec<&'a str> {
    let set = asked.lines().filter(|line| line.starts_with("CONFIG_"));
    set.filter(|option| !result.lines().any(|line| line == *option) && !is_off(option, result))
        .collect()
}

/// An option that is off is a comment in the result, or absent.
fn is_off(option: &str, result: &str) -> bool {
    let Some(name) = option.strip_suffix("=n") else {
        return false;
    };
    !result.lines().any(|line| line.starts_with(&format!("{name}=")))
}

fn compile(source: &Path) -> Result<(), Error> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    say(&format!("building the small kernel with {jobs} jobs: about 6 minutes on two cores"));
    let mut command = make(source).args([format!("-j{jobs}"), "bzImage".into()]).into_command();
    let name = shown(&command);
    let log = source.join("lab.log");
    let errors = fs::File::create(&log).map_err(Error::file("write", &log))?;
    let failed = |why: String| Error::Command { command: name.clone(), why };
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    show_progress(&mut child);
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    if status.success() {
        return Ok(());
    }
    let said = fs::read_to_string(&log).unwrap_or_default();
    Err(failed(format!("{status}\n{}", last_lines(&said, 15))))
}

fn show_progress(make: &mut Child) {
    let Some(output) = make.stdout.take() else {
        return;
    };
    for (number, line) in BufReader::new(output).lines().map_while(Result::ok).enumerate() {
        if number % LINES_PER_SIGN == LINES_PER_SIGN - 1 {
            say(&format!("  {} steps, now at {}", number.saturating_add(1), line.trim()));
        }
    }
}

fn make(source: &Path) -> Tool {
    // A name and a date of our own: the same options give the same kernel.
    Tool::new("make")
        .folder(source)
        .env("KBUILD_BUILD_USER", "lab")
        .env("KBUILD_BUILD_HOST", "lab")
        .env("KBUILD_BUILD_TIMESTAMP", "2026-01-01")
        .without_env("MAKEFLAGS")
}

/// Tells one text from another, for names in the cache.
pub fn fingerprint(options: &str) -> String {
    Sha256::digest(options).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_was_dropped_is_named() {
        let asked = "# why\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\nCONFIG_D=n\n";
        let result = "CONFIG_A=y\n# CONFIG_C is not set\nCONFIG_D=y\n";
        assert_eq!(not_taken(asked, result), ["CONFIG_B=y", "CONFIG_D=n"]);
    }

    #[test]
    fn the_guard_is_put_where_kvm_decides_and_not_elsewhere() {
        let source = tempfile::tempdir().unwrap();
        let folder = source.path().join("arch/x86/kvm/svm");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("svm.c"), "\tif (force_immediate_exit)\n\t\tkick();\n").unwrap();
        guard_injections(source.path()).unwrap();
        let text = fs::read_to_string(folder.join("svm.c")).unwrap();
        assert_eq!(
            text,
            "\tif (force_immediate_exit || svm->vmcb->control.event_inj)\n\t\tkick();\n"
        );
        assert!(matches!(guard_injections(source.path()), Err(Error::NoGuard(_))));
    }

    #[test]
    fn other_options_are_another_kernel() {
        assert_ne!(fingerprint("CONFIG_A=y"), fingerprint("CONFIG_A=n"));
        assert_eq!(fingerprint("").len(), 12);
    }
}
