//! The virtio-serial port to the lab.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Error, Result, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use lab::protocol::{Message, PORT_NAME, Request};

/// The sysfs folder of virtio-serial ports. The folder of each port has a file `name`.
const PORTS: &str = "/sys/class/virtio-ports";

/// How often to look for the port, once in a millisecond: the port's driver may not be ready when
/// the kernel starts the init.
const TRIES: u32 = 5000;

/// Sends messages. All threads share one.
#[derive(Clone)]
pub struct Sender(Arc<Mutex<File>>);

impl Sender {
    /// Sends one message as one line.
    pub fn send(&self, message: &Message) -> Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
    }
}

/// Receives requests. The iterator ends when the lab closes the port.
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
