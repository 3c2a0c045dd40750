//! The port to the lab.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Error, Result, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use lab::protocol::{Message, PORT_NAME, Request};

/// Where the kernel lists virtio-serial ports; each has a file `name`.
const PORTS: &str = "/sys/class/virtio-ports";

/// The port's driver needs a moment after the kernel has started the init: at most this many tries of 1 ms.
const TRIES: u32 = 5000;

/// Sends messages, from any thread.
#[derive(Clone)]
pub struct Sender(Arc<Mutex<File>>);

impl Sender {
    /// One message, whole.
    pub fn send(&self, message: &Message) -> Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
    }
}

/// Requests as they come. Ends when the lab closes its side.
pub struct Requests(BufReader<File>);

impl Iterator for Requests {
    type Item = Result<Request>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).map_err(Error::from)),
            Err(error) => Some(Err(error)),
        }
    }
}

/// Waits for the port and opens it.
pub fn open() -> Result<(Sender, Requests)> {
    let path = wait_for_port()?;
    let file = File::options().read(true).write(true).open(path)?;
    let requests = Requests(BufReader::new(file.try_clone()?));
    Ok((Sender(Arc::new(Mutex::new(file))), requests))
}

fn wait_for_port() -> Result<PathBuf> {
    for _ in 0..TRIES {
        if let Some(path) = find_port() {
            return Ok(path);
        }
        sleep(Duration::from_millis(1));
    }
    Err(Error::other(format!("no virtio-serial port named {PORT_NAME:?}")))
}

fn find_port() -> Option<PathBuf> {
    let ours = |folder: &PathBuf| {
        fs::read_to_string(folder.join("name")).is_ok_and(|name| name.trim() == PORT_NAME)
    };
    let folder = fs::read_dir(PORTS).ok()?.flatten().map(|entry| entry.path()).find(ours)?;
    Some(PathBuf::from("/dev").join(folder.file_name()?)).filter(|device| device.exists())
}
