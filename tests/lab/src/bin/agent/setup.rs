//! Mounts, modules and files of L1.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Error, ErrorKind, Read as _, Result};
use std::os::unix::fs::{OpenOptionsExt as _, chown};
use std::path::Path;

use lab::protocol::MODULE_LIST;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::libc::O_NONBLOCK;
use nix::mount::{MsFlags, mount, umount};

/// The kernel's file systems: type and mount point.
const KERNEL_MOUNTS: [(&str, &str); 5] = [
    ("devtmpfs", "/dev"),
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("debugfs", "/sys/kernel/debug"),
    ("tmpfs", "/tmp"),
];

/// Mounts the kernel's file systems.
pub fn mount_all() -> Result<()> {
    mount_under(Path::new("/"))
}

fn mount_under(root: &Path) -> Result<()> {
    for (kind, place) in KERNEL_MOUNTS {
        let target = root.join(place.trim_start_matches('/'));
        if !target.exists() {
            fs::create_dir_all(&target)?;
        }
        match mount(Some(kind), &target, Some(kind), MsFlags::empty(), None::<&str>) {
            // EBUSY: the kernel has mounted /dev.
            Ok(()) | Err(nix::Error::EBUSY) => {}
            Err(errno) => return Err(named(&format!("mount {}", target.display()), errno.into())),
        }
    }
    Ok(())
}

/// Mounts the host's root at `at`, with L1's kernel file systems in it.
pub fn share(at: &Path) -> Result<()> {
    fs::create_dir_all(at)?;
    let options = "trans=virtio,version=9p2000.L,msize=1048576,cache=loose";
    mount(Some("host"), at, Some("9p"), MsFlags::MS_RDONLY, Some(options))
        .map_err(|errno| named("mount the host's root", errno.into()))?;
    mount_under(at)
}

/// Loads the modules of the initramfs, in the order of their list.
pub fn load_modules() -> Result<()> {
    for path in fs::read_to_string(MODULE_LIST).unwrap_or_default().lines() {
        let file = File::open(path).map_err(|error| named(path, error))?;
        match finit_module(&file, &CString::default(), ModuleInitFlags::empty()) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(errno) => return Err(named(&format!("load {path}"), errno.into())),
        }
    }
    Ok(())
}

/// Reads a file as text, or the names in a folder, one on each line. Bytes of a file that are not
/// UTF-8 become replacement characters.
pub fn read(path: &str) -> Result<String> {
    if !Path::new(path).is_dir() {
        return Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned());
    }
    let names =
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    Ok(names.collect::<Result<Vec<_>>>()?.join("\n"))
}

/// Writes a file, and makes missing folders.
pub fn write(path: &Path, contents: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, contents)
}

/// The agent's first argument to exchange the two paths that follow.
pub const EXCHANGE: &str = "exchange";

/// Exchanges two files or folders atomically.
pub fn exchange(one: &str, other: &str) -> Result<()> {
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).map_err(Error::from)
}

/// Reads the messages of the kernel.
pub fn kernel_log() -> Result<String> {
    let mut log = String::new();
    let mut file = File::options().read(true).custom_flags(O_NONBLOCK).open("/dev/kmsg")?;
    let mut record = [0; 8192];
    loop {
        match file.read(&mut record) {
            Ok(length) => {
                log.push_str(&String::from_utf8_lossy(record.get(..length).unwrap_or_default()))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(log),
            // EPIPE: the kernel overwrote the next record; the next read continues after it.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error),
        }
    }
}

/// The file that is mounted over another. It is deleted after the mount, so one path is enough.
const COVER: &str = "/tmp/cover";

/// Mounts a file with `contents` over the file at `path`.
pub fn cover(path: &str, contents: &str) -> Result<()> {
    fs::write(COVER, contents)?;
    let mounted = mount(Some(COVER), path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    mounted.map_err(|errno| named(&format!("cover {path}"), errno.into()))?;
    fs::remove_file(COVER)
}

/// Unmounts what covers the file at `path`.
pub fn uncover(path: &str) -> Result<()> {
    umount(path).map_err(|errno| named(&format!("uncover {path}"), errno.into()))
}

/// Deletes a file, if it exists.
pub fn remove(path: &str) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Changes the owner of a file, or of all files in a folder.
pub fn own(path: &Path, user: u32) -> Result<()> {
    if path.is_dir() {
        return fs::read_dir(path)?.try_for_each(|entry| own(&entry?.path(), user));
    }
    chown(path, Some(user), Some(user))
}

/// Adds the failed action to an error.
fn named(what: &str, error: Error) -> Error {
    Error::new(error.kind(), format!("{what}: {error}"))
}
