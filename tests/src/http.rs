//! A web client on one connection: asks for a page again and again over the
//! same TCP connection and never opens another.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The longest page taken, in bytes.
const LIMIT: usize = 16 << 20;
/// The most header lines taken.
const HEADERS: usize = 100;

/// Why a page could not be had. The connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The connection failed or timed out.
    #[error("the connection to the web server: {0}")]
    Io(#[from] io::Error),
    /// The server sent what is not an HTTP/1.1 answer with a length.
    #[error("the web server's answer is not understood: {0}")]
    Malformed(String),
}

/// A page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The HTTP status, such as 200.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// A connection that stays open between requests.
pub struct KeepAlive {
    reader: BufReader<TcpStream>,
    host: SocketAddr,
}

impl KeepAlive {
    /// Connects; every later wait is bounded by `timeout`.
    pub fn connect(address: SocketAddr, timeout: Duration) -> Result<Self, HttpError> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            reader: BufReader::new(stream),
            host: address,
        })
    }

    /// Asks for `path` and reads the whole answer.
    pub fn get(&mut self, path: &str) -> Result<Page, HttpError> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: keep-alive\r\n\r\n",
            self.host
        );
        self.reader.get_mut().write_all(request.as_bytes())?;
        let first = self.line()?;
        let status = first
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| HttpError::Malformed(format!("'{first}'")))?;
        let mut length = None;
        for _ in 0..HEADERS {
            let line = self.line()?;
            if line.is_empty() {
                let length = length.ok_or_else(|| {
                    HttpError::Malformed("an answer without Content-Length".into())
                })?;
                let mut body = vec![0; length];
                self.reader.read_exact(&mut body)?;
                return Ok(Page { status, body });
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                let parsed = value.trim().parse().ok().filter(|&n: &usize| n <= LIMIT);
                length = Some(parsed.ok_or_else(|| HttpError::Malformed(line.clone()))?);
            }
        }
        Err(HttpError::Malformed("too many header lines".into()))
    }

    fn line(&mut self) -> Result<String, HttpError> {
        let mut line = Vec::new();
        let read = (&mut self.reader).take(8192).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
        }
        match line.strip_suffix(b"\r\n").map(std::str::from_utf8) {
            Some(Ok(text)) => Ok(text.to_string()),
            _ => Err(HttpError::Malformed("a header line without an end".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// Answers `answers` in turn on one connection, then closes it.
    fn server(answers: Vec<&'static str>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            for answer in answers {
                let mut line = String::new();
                while reader.read_line(&mut line).unwrap() > 2 {
                    line.clear();
                }
                reader.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    #[test]
    fn pages_come_over_one_connection_until_it_is_closed() {
        let address = server(vec![
            "HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        ]);
        let mut web = KeepAlive::connect(address, Duration::from_secs(5)).unwrap();
        let page = web.get("/").unwrap();
        assert_eq!((page.status, &page.body[..]), (200, &b"hello"[..]));
        assert_eq!(web.get("/absent").unwrap().status, 404);
        assert!(matches!(web.get("/"), Err(HttpError::Io(_))));
    }

    #[test]
    fn answers_that_are_not_http_are_refused() {
        for bad in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        ] {
            let mut web = KeepAlive::connect(server(vec![bad]), Duration::from_secs(5)).unwrap();
            assert!(
                matches!(web.get("/"), Err(HttpError::Malformed(_))),
                "{bad}"
            );
        }
    }
}
