//! QEMU's monitor (QMP): what happens to L1's hardware while it runs.

use std::io::{BufRead as _, BufReader, Error as IoError, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::Error;
use crate::watchdog::PATIENCE;

/// A connection to the monitor.
pub struct Monitor {
    lines: BufReader<UnixStream>,
    /// Events that came while something else was waited for.
    events: Vec<Value>,
}

impl Monitor {
    /// Connects to the monitor at `path` and greets it.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(path).map_err(Error::file("connect to", path))?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .map_err(Error::file("set a time-out of", path))?;
        let mut monitor = Self {
            lines: BufReader::new(stream),
            events: Vec::new(),
        };
        // It greets first, and takes no command before its capabilities are agreed on.
        monitor.message("greeting")?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Runs a command of QMP; what it returns.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Error> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        let sent = self.lines.get_mut().write_all(line.as_bytes());
        sent.map_err(|error| Error::Monitor {
            command: command.into(),
            why: error.to_string(),
        })?;
        loop {
            let message = self.message(command)?;
            if let Some(value) = message.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = message.get("error") {
                let why = error.to_string();
                let command = command.to_owned();
                return Err(Error::Monitor { command, why });
            }
            self.events.push(message);
        }
    }

    /// Asks L1 to let a device go, as whoever presses the button at its slot does.
    pub fn unplug(&mut self, device: &str) -> Result<(), Error> {
        self.execute("device_del", &json!({ "id": device })).map(drop)
    }

    /// Has a device tell of an uncorrectable error that is not fatal: nothing came back (PCIe 6.2.7, completion
    /// timeout).
    pub fn fail(&mut self, device: &str) -> Result<(), Error> {
        let line = format!("pcie_aer_inject_error {device} COMP_TIME");
        let said = self.execute("human-monitor-command", &json!({ "command-line": line }))?;
        match said.as_str() {
            Some(said) if said.starts_with("OK") => Ok(()),
            _ => Err(Error::Monitor {
                command: line,
                why: said.to_string(),
            }),
        }
    }

    /// Waits until L1 has let a device go that it was asked for.
    pub fn unplugged(&mut self, device: &str) -> Result<(), Error> {
        let is_it = |event: &Value| {
            event.get("event").and_then(Value::as_str) == Some("DEVICE_DELETED")
                && event.pointer("/data/device").and_then(Value::as_str) == Some(device)
        };
        while !self.events.iter().any(is_it) {
            let message = self.message("DEVICE_DELETED")?;
            self.events.push(message);
        }
        self.events.retain(|event| !is_it(event));
        Ok(())
    }

    fn message(&mut self, what: &str) -> Result<Value, Error> {
        let failed = |error: IoError| Error::Monitor {
            command: what.to_owned(),
            why: error.to_string(),
        };
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) => Err(failed(ErrorKind::UnexpectedEof.into())),
            Ok(_) => serde_json::from_str(&line).map_err(Error::json("the monitor's message")),
            Err(error) => Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// A monitor that answers each line with the next of `answers`.
    fn monitor(answers: &[&'static str]) -> Result<Monitor, Error> {
        let answers = [&["{\"return\":{}}"], answers].concat();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\":{}}\n").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            for answer in answers {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                stream.write_all(format!("{answer}\n").as_bytes()).unwrap();
            }
        });
        Monitor::connect(&path)
    }

    #[test]
    fn an_event_that_comes_before_the_answer_is_not_lost() {
        let deleted = "{\"event\":\"DEVICE_DELETED\",\"data\":{\"device\":\"d0\"}}\n{\"return\":{}}";
        let mut monitor = monitor(&[deleted]).unwrap();
        monitor.unplug("d0").unwrap();
        monitor.unplugged("d0").unwrap();
        assert!(monitor.events.is_empty());
    }

    #[test]
    fn what_it_refuses_is_told_with_the_command() {
        let mut monitor = monitor(&["{\"error\":{\"desc\":\"Device 'd1' not found\"}}"]).unwrap();
        let text = monitor.unplug("d1").unwrap_err().to_string();
        assert!(
            text.contains("device_del") && text.contains("'d1' not found"),
            "{text}"
        );
    }

    #[test]
    fn an_error_that_cannot_be_had_is_told() {
        let mut monitor = monitor(&["{\"return\":\"OK id: d0\"}", "{\"return\":\"no device\"}"]).unwrap();
        monitor.fail("d0").unwrap();
        let text = monitor.fail("d1").unwrap_err().to_string();
        assert!(text.contains("no device"), "{text}");
    }

    #[test]
    fn a_monitor_that_ends_is_an_error() {
        assert!(monitor(&[]).unwrap().unplug("device0").is_err());
    }
}
