//! Builds the small kernels from Debian's source packages.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use sha2::{Digest as _, Sha256};

use crate::cache::Cache;
use crate::command::{Tool, last_lines, shown};
use crate::kernel::KernelFiles;
use crate::{Error, packages, say, suite};

/// A small kernel: where its source is, and its options beyond `make tinyconfig`.
#[derive(Clone, Copy)]
pub struct Recipe {
    /// The start of its name in the cache.
    name: &'static str,
    /// Debian's source package.
    package: &'static str,
    /// The release of Debian that has the package, if not the machine's own.
    suite: Option<&'static str>,
    /// Files of options; a later one wins.
    options: &'static [&'static str],
}

/// The kernel that most tests use.
pub const OF_6_12: Recipe =
    Recipe { name: "linux-small", package: "linux-source-6.12", suite: None, options: &[OPTIONS] };

/// The release of Debian that has 7.3.
pub const BACKPORTS: &str = "trixie-backports";

/// A kernel with what newer kernels have, for long forms.
pub const OF_7_3: Recipe = Recipe {
    name: "linux-small-7.3",
    package: "linux-source-7.3",
    suite: Some(BACKPORTS),
    options: &[OPTIONS, include_str!("../kernel-7.3.config")],
};

const OPTIONS: &str = include_str!("../kernel.config");

/// The line of KVM that decides to send itself an interrupt before it enters L2.
const KICK: &str = "if (force_immediate_exit)\n";

/// The replacement of that line, which also does so when it injects an interrupt.
const KICK_ON_INJECTION: &str = "if (force_immediate_exit || svm->vmcb->control.event_inj)\n";

/// The number of lines of make's output between two lines of progress.
const LINES_PER_MESSAGE: usize = 400;

/// Returns the kernel's files; builds them if the cache lacks a kernel with these options. It has
/// no modules.
pub fn files(cache: &Cache, recipe: Recipe) -> Result<KernelFiles, Error> {
    let config = recipe.options.concat();
    let input: Vec<&str> = options(&config).chain([KICK_ON_INJECTION]).collect();
    let name = format!("{}-{}", recipe.name, fingerprint(&input.join("\n")));
    let folder = cache.entry(&name, |draft| build(cache, recipe, &config, draft))?;
    Ok(KernelFiles { image: folder.join("bzImage"), l1_modules: Vec::new(), folder })
}

fn build(cache: &Cache, recipe: Recipe, config: &str, draft: &Path) -> Result<(), Error> {
    packages::ensure(packages::KERNEL_BUILD)?;
    let work = cache.scratch()?;
    let source = work.path().join("linux");
    unpack_source(recipe, work.path(), &source)?;
    guard_injections(&source)?;
    configure(&source, config)?;
    compile(&source)?;
    for (from, to) in
        [("arch/x86/boot/bzImage", "bzImage"), ("vmlinux", "vmlinux"), (".config", "config")]
    {
        fs::copy(source.join(from), draft.join(to))
            .map_err(Error::file("copy", source.join(from)))?;
    }
    Ok(())
}

/// Fetches the source of a kernel, and unpacks it in the folder `source`.
pub fn unpack_source(recipe: Recipe, work: &Path, source: &Path) -> Result<(), Error> {
    let Recipe { package, suite, .. } = recipe;
    match suite {
        Some(suite) => suite::unpack(suite, &[package], work)?,
        None => packages::unpack(package, work)?,
    }
    fs::create_dir(source).map_err(Error::file("create", source))?;
    let archive = work.join("usr/src").join(format!("{package}.tar.xz"));
    Tool::new("tar").args(["--strip-components=1", "-xf"]).args([&archive]).folder(source).run()
}

/// Makes KVM exit from L2 right after each injection. The agent's `guard` explains why, and does
/// the same for unmodified kernels.
fn guard_injections(source: &Path) -> Result<(), Error> {
    let path = source.join("arch/x86/kvm/svm/svm.c");
    let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let guarded = text.replacen(KICK, KICK_ON_INJECTION, 1);
    if guarded == text {
        return Err(Error::NoGuard(path));
    }
    fs::write(&path, guarded).map_err(Error::file("write", &path))
}

fn configure(source: &Path, config: &str) -> Result<(), Error> {
    let ours = source.join("lab.config");
    fs::write(&ours, config).map_err(Error::file("write", &ours))?;
    make(source).args(["tinyconfig"]).run()?;
    let merge = source.join("scripts/kconfig/merge_config.sh");
    Tool::new(merge).args(["-m", ".config", "lab.config"]).folder(source).run()?;
    make(source).args(["olddefconfig"]).run()?;
    let result = source.join(".config");
    let result = fs::read_to_string(&result).map_err(Error::file("read", &result))?;
    for option in not_taken(config, &result) {
        say(&format!("note: the kernel's configuration does not have {option}"));
    }
    Ok(())
}

/// The lines of a configuration without comments.
fn options(config: &str) -> impl Iterator<Item = &str> {
    config.lines().filter(|line| line.starts_with("CONFIG_"))
}

/// The requested options that the resulting configuration lacks.
fn not_taken<'a>(requested: &'a str, result: &str) -> Vec<&'a str> {
    options(requested)
        .filter(|option| !result.lines().any(|line| line == *option) && !is_off(option, result))
        .collect()
}

/// Whether `option` requests "off" and the configuration has that: as a comment, or not at all.
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
    let output = fs::read_to_string(&log).unwrap_or_default();
    Err(failed(format!("{status}\n{}", last_lines(&output, 15))))
}

fn show_progress(make: &mut Child) {
    let Some(output) = make.stdout.take() else {
        return;
    };
    for (number, line) in BufReader::new(output).lines().map_while(Result::ok).enumerate() {
        if number % LINES_PER_MESSAGE == LINES_PER_MESSAGE - 1 {
            say(&format!("  {} steps, now at {}", number.saturating_add(1), line.trim()));
        }
    }
}

/// `make` in the source of a kernel.
pub fn make(source: &Path) -> Tool {
    // With a fixed name and date, the same options give the same kernel.
    Tool::new("make")
        .folder(source)
        .env("KBUILD_BUILD_USER", "lab")
        .env("KBUILD_BUILD_HOST", "lab")
        .env("KBUILD_BUILD_TIMESTAMP", "2026-01-01")
        .without_env("MAKEFLAGS")
}

/// A short hash of `options`, for names in the cache.
pub fn fingerprint(options: &str) -> String {
    Sha256::digest(options).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_options_that_are_missing() {
        let requested = "# why\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\nCONFIG_D=n\n";
        let result = "CONFIG_A=y\n# CONFIG_C is not set\nCONFIG_D=y\n";
        assert_eq!(not_taken(requested, result), ["CONFIG_B=y", "CONFIG_D=n"]);
    }

    #[test]
    fn replaces_the_line_that_decides_and_reports_its_absence() {
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
    fn fingerprint_depends_on_the_options() {
        assert_ne!(fingerprint("CONFIG_A=y"), fingerprint("CONFIG_A=n"));
        assert_eq!(fingerprint("").len(), 12);
    }
}
