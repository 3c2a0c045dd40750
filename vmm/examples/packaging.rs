//! Writes man pages and shell completions into a folder, from the definition of the command line.
//!
//! ```console
//! $ cargo run -p vmm --example packaging -- target/packaging
//! ```

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use clap::CommandFactory;
use clap_complete::{Shell, generate_to};
use vmm::CommandLine;

const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Fish, Shell::Zsh];

fn main() -> io::Result<()> {
    let usage = || io::Error::other("give a folder: packaging FOLDER");
    let folder = env::args_os().nth(1).map(PathBuf::from).ok_or_else(usage)?;
    write(&folder)?;
    for file in fs::read_dir(&folder)? {
        println!("{}", file?.path().display());
    }
    Ok(())
}

/// Writes `vmm.1` and one page per command, and `vmm.bash`, `vmm.fish`, `_vmm`.
fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(CommandLine::command(), folder)?;
    let mut line = CommandLine::command();
    SHELLS.iter().try_for_each(|shell| generate_to(*shell, &mut line, "vmm", folder).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_man_page_and_completions_have_every_option_and_command() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        // Man pages escape dashes.
        let read = |name: &str| {
            let text = fs::read_to_string(folder.path().join(name)).unwrap();
            text.replace("\\-", "-")
        };
        let line = CommandLine::command();
        let options = line.get_arguments().filter_map(|argument| argument.get_long());
        let options: Vec<_> = options.map(str::to_owned).collect();
        let commands: Vec<_> = line.get_subcommands().map(|c| c.get_name().to_owned()).collect();
        assert!(options.contains(&"control".to_owned()) && commands.contains(&"check".to_owned()));
        for file in ["vmm.1", "vmm.bash", "vmm.fish", "_vmm"] {
            let text = read(file);
            for word in options.iter().chain(&commands) {
                assert!(text.contains(word.as_str()), "{word} is not in {file}");
            }
        }
        for command in &commands {
            assert!(read(&format!("vmm-{command}.1")).contains(".TH"), "{command}");
        }
    }

    #[test]
    fn the_unit_uses_existing_options_and_commands() {
        let unit = include_str!("../../packaging/vmm@.service");
        let started = |prefix: &str| {
            let line = unit.lines().find_map(|line| line.strip_prefix(prefix)).unwrap();
            let words = line.replace("$VMM_ARGS", "--kernel /boot/vmlinuz --vfio 0000:01:00.0");
            CommandLine::command().try_get_matches_from(words.split(' ')).unwrap()
        };
        let control = started("ExecStart=").remove_one::<PathBuf>("control");
        assert_eq!(control, Some("/run/vmm/%i/control.sock".into()));
        assert!(
            unit.contains("/usr/bin/vmm bind ")
                && CommandLine::command().find_subcommand("bind").is_some()
        );
    }
}
