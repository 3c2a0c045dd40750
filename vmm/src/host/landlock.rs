//! Landlock: a running VMM cannot open files, use TCP ports or signal other processes, even if its
//! seccomp lists allow the system calls. Open files remain usable, because the kernel checks the
//! right when a file is opened (Documentation/userspace-api/landlock.rst).

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

use crate::config::Thread;
use crate::error::Error;

/// The newest ABI that was tested. An older kernel enforces the subset that it supports.
const TESTED: ABI = ABI::V7;

/// Restricts the calling thread, and the threads that it starts, to files that are open. The
/// restriction is permanent.
///
/// The threads may remove files in the folder of `socket`, because the VMM removes its socket at
/// the end.
///
/// # Errors
///
/// [`Error::Landlock`] if the kernel supports Landlock and refuses the rules, for example with
/// E2BIG after 16 layers from the parents of this process.
pub(crate) fn restrict(thread: Thread, socket: Option<&Path>) -> Result<(), Error> {
    let failed = |why: String| Error::Landlock { why };
    let ruled = rule(thread, socket.map(folder)).map_err(|error| failed(error.to_string()))?;
    if ruled == RulesetStatus::NotEnforced {
        log::info!("this kernel has no Landlock; only seccomp restricts file access");
    }
    Ok(())
}

fn folder(file: &Path) -> &Path {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

fn rule(
    thread: Thread,
    folder: Option<&Path>,
) -> Result<RulesetStatus, Box<dyn std::error::Error>> {
    let scope = match thread {
        // The control thread kicks the vCPU threads, which have the main thread's rules. Before
        // Linux 6.15 Landlock refused a signal between threads of one process with different rules.
        Thread::Control => Scope::AbstractUnixSocket.into(),
        Thread::Main | Thread::Vcpu => Scope::from_all(TESTED),
    };
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(TESTED))?
        .handle_access(AccessNet::from_all(TESTED))?
        .scope(scope)?;
    let mut rules = rules.create()?;
    if let Some(folder) = folder {
        let remove = PathBeneath::new(PathFd::new(folder)?, AccessFs::RemoveFile);
        rules = rules.add_rule(remove)?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// Whether this kernel enforces all of the rules.
#[cfg(test)]
pub(crate) fn is_fully_enforced() -> bool {
    let ruled =
        std::thread::spawn(|| matches!(rule(Thread::Main, None), Ok(RulesetStatus::FullyEnforced)));
    ruled.join().is_ok_and(|is_fully_enforced| is_fully_enforced)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use nix::sys::signal::kill;
    use nix::unistd::getppid;
    use tempfile::TempDir;

    use super::*;

    /// The result of `does` in a thread with the rules of `thread`; `None` if this kernel does
    /// not enforce all of them.
    fn under<T: Send>(
        thread: Thread,
        socket: Option<&Path>,
        does: impl FnOnce() -> T + Send,
    ) -> Option<T> {
        if !is_fully_enforced() {
            eprintln!("NOT RUN: this kernel does not support all of Landlock's ABI 7");
            return None;
        }
        let ruled = || {
            restrict(thread, socket).unwrap();
            does()
        };
        Some(thread::scope(|scope| scope.spawn(ruled).join().unwrap()))
    }

    fn refusal<T>(result: std::io::Result<T>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind())
    }

    const REFUSED: Option<ErrorKind> = Some(ErrorKind::PermissionDenied);

    #[test]
    fn allows_open_files_and_denies_everything_else() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("file");
        let mut open = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        for thread in [Thread::Main, Thread::Control] {
            let seen = under(thread, None, || {
                open.write_all(b"open").unwrap();
                open.set_len(2).unwrap();
                open.read_to_end(&mut Vec::new()).unwrap();
                [
                    refusal(File::open(&path)),
                    refusal(File::create(folder.path().join("new"))),
                    refusal(fs::read_dir("/")),
                    refusal(fs::remove_file(&path)),
                    refusal(fs::rename(&path, folder.path().join("new"))),
                    refusal(fs::create_dir(folder.path().join("new"))),
                    refusal(TcpStream::connect(there)),
                    refusal(TcpListener::bind("127.0.0.1:0")),
                ]
            });
            assert!(seen.is_none_or(|seen| seen == [REFUSED; 8]), "{thread:?}: {seen:?}");
        }
        assert!(path.exists());
    }

    #[test]
    fn allows_removal_only_in_the_folder_of_the_socket() {
        let [own, other] = [(); 2].map(|()| TempDir::new().unwrap());
        let [socket, file] = [&own, &other].map(|folder| folder.path().join("vm.sock"));
        for path in [&socket, &file] {
            fs::write(path, "x").unwrap();
        }
        let seen = under(Thread::Main, Some(&socket), || {
            [
                refusal(fs::read(&socket)),
                refusal(fs::remove_file(&file)),
                refusal(fs::remove_file(&socket)),
            ]
        });
        if let Some(seen) = seen {
            assert_eq!(seen, [REFUSED, REFUSED, None]);
            assert_eq!([socket, file].map(|path| path.exists()), [false, true]);
        }
    }

    #[test]
    fn denies_signals_to_other_processes() {
        // Signal 0 only checks the permission.
        let send = || kill(getppid(), None);
        assert_eq!(send(), Ok(()), "allowed without the rules");
        let sent = under(Thread::Main, None, send);
        assert!(sent.is_none_or(|sent| sent == Err(nix::Error::EPERM)), "{sent:?}");
    }

    #[test]
    fn a_socket_without_a_folder_is_in_the_current_folder() {
        let folders = ["vm.sock", "run/vm.sock", "/vm.sock"].map(|path| folder(Path::new(path)));
        assert_eq!(folders, [".", "run", "/"].map(Path::new));
    }
}
