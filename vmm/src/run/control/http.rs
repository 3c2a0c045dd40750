//! Reads one HTTP/1.1 request and writes its response. A connection carries one of each, because
//! clients send requests rarely.

use std::io::{self, Read, Write};

use httparse::{EMPTY_HEADER, Request, Status};

/// The maximum size of a request's head.
const LONGEST: usize = 8 << 10;
/// The maximum size of a request's body: descriptions of a few devices.
const LONGEST_BODY: usize = 1 << 20;
const MOST_HEADERS: usize = 64;

/// A parsed request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The method, `GET` or `PUT`.
    pub(crate) method: String,
    /// The path with its leading slash, without the query.
    pub(crate) path: String,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// A response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// The JSON body; empty with status 204.
    pub(crate) body: String,
    /// The allowed method, with status 405.
    pub(crate) allow: Option<&'static str>,
}

impl Response {
    /// A response with a body.
    pub(crate) fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: body.into(), allow: None }
    }

    /// A response with an error text.
    pub(crate) fn error(status: u16, why: &str) -> Self {
        Self::new(status, serde_json::json!({ "error": why }).to_string())
    }

    fn reason(&self) -> &'static str {
        match self.status {
            200 => "OK",
            204 => "No Content",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            409 => "Conflict",
            413 => "Content Too Large",
            422 => "Unprocessable Content",
            431 => "Request Header Fields Too Large",
            _ => "Internal Server Error",
        }
    }

    /// Writes the response.
    pub(crate) fn write(&self, mut to: impl Write) -> io::Result<()> {
        let mut text = format!(
            "HTTP/1.1 {} {}\r\nServer: vmm\r\nConnection: close\r\n",
            self.status,
            self.reason()
        );
        if let Some(method) = self.allow {
            text.push_str(&format!("Allow: {method}\r\n"));
        }
        if self.status != 204 {
            let length = self.body.len();
            text.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {length}\r\n"
            ));
        }
        text.push_str("\r\n");
        text.push_str(&self.body);
        to.write_all(text.as_bytes())
    }
}

/// Reads a request. An invalid request returns its response.
pub(crate) fn read(mut from: impl Read) -> io::Result<Result<Asked, Response>> {
    let mut bytes = Vec::new();
    let head = loop {
        receive(&mut from, &mut bytes)?;
        match parse(&bytes) {
            Ok(None) if bytes.len() > LONGEST => {
                return Ok(Err(Response::error(431, "the request is longer than 8 KiB")));
            }
            Ok(None) => {}
            Ok(Some(head)) => break head,
            Err(error) => return Ok(Err(Response::error(400, &error.to_string()))),
        }
    };
    if head.body > LONGEST_BODY {
        return Ok(Err(Response::error(413, "the body is longer than 1 MiB")));
    }
    let mut body = bytes.split_off(head.length.min(bytes.len()));
    while body.len() < head.body {
        receive(&mut from, &mut body)?;
    }
    body.truncate(head.body);
    Ok(Ok(Asked { body, ..head.asked }))
}

/// Appends what comes next.
fn receive(from: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0; 4096];
    let count = from.read(&mut chunk)?;
    if count == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
    Ok(())
}

/// A parsed head: its own length, and that of the body.
struct Head {
    asked: Asked,
    length: usize,
    body: usize,
}

fn parse(bytes: &[u8]) -> Result<Option<Head>, httparse::Error> {
    let mut headers = [EMPTY_HEADER; MOST_HEADERS];
    let mut request = Request::new(&mut headers);
    let Status::Complete(length) = request.parse(bytes)? else {
        return Ok(None);
    };
    let path = request.path.unwrap_or_default();
    let asked = Asked {
        method: request.method.unwrap_or_default().to_owned(),
        path: path.split('?').next().unwrap_or_default().to_owned(),
        body: Vec::new(),
    };
    let mut headers = request.headers.iter();
    let body = headers.find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let number = |value: &[u8]| std::str::from_utf8(value).ok()?.trim().parse().ok();
    let body = match body {
        Some(header) => number(header.value).ok_or(httparse::Error::HeaderValue)?,
        None => 0,
    };
    Ok(Some(Head { asked, length, body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Result<Asked, u16> {
        read(text.as_bytes()).unwrap().map_err(|response| response.status)
    }

    #[test]
    fn parses_the_method_and_the_path() {
        let text = "PUT /api/v1/vm.pause?x=1 HTTP/1.1\r\nHost: x\r\n\r\n";
        let (method, path) = ("PUT".to_owned(), "/api/v1/vm.pause".to_owned());
        assert_eq!(asked(text), Ok(Asked { method, path, body: Vec::new() }));
    }

    #[test]
    fn reads_a_body_of_the_stated_length() {
        let body = |text: &str| asked(text).map(|asked| String::from_utf8(asked.body).unwrap());
        let head = "PUT / HTTP/1.1\r\ncontent-length: 5\r\n\r\n";
        assert_eq!(body(&format!("{head}hello, and more")), Ok("hello".into()));
        assert!(read(format!("{head}hell").as_bytes()).is_err());
        let large = "x".repeat(100_000);
        let text = format!("PUT / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n{large}");
        assert_eq!(body(&text), Ok(large));
        let huge = format!("PUT / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", (1 << 20) + 1);
        assert_eq!(body(&huge), Err(413));
        assert_eq!(body("PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), Err(400));
    }

    #[test]
    fn answers_an_invalid_request_and_fails_on_a_truncated_one() {
        assert_eq!(asked("\x16\x03\x01\x02\r\n\r\n"), Err(400));
        assert_eq!(asked("GET / HTTP/1.1\r\nno colon\r\n\r\n"), Err(400));
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(2 * LONGEST));
        assert_eq!(asked(&long), Err(431));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(MOST_HEADERS + 1));
        assert_eq!(asked(&many), Err(400));
        assert!(read("GET / HTT".as_bytes()).is_err());
    }

    #[test]
    fn a_response_has_its_length_and_closes_the_connection() {
        let written = |response: Response| {
            let mut out = Vec::new();
            response.write(&mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            written(Response::new(200, "{}")),
            "HTTP/1.1 200 OK\r\nServer: vmm\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: 2\r\n\r\n{}"
        );
        assert_eq!(
            written(Response::new(204, "")),
            "HTTP/1.1 204 No Content\r\nServer: vmm\r\nConnection: close\r\n\r\n"
        );
        let refused = Response { allow: Some("PUT"), ..Response::error(405, "x") };
        assert!(written(refused).contains(
            "405 Method Not Allowed\r\nServer: vmm\r\nConnection: close\r\nAllow: PUT\r\n"
        ));
    }
}
