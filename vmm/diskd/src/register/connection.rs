//! One connection to the register: lines of JSON in, lines of JSON out.

use std::io::BufReader;
use std::net::TcpStream;

use wire::line::{self, LineError};
use wire::register::{MAX_LINE, Request, Response, ServerInfo};

use super::Register;

/// Serves requests until the client leaves. A line that is no request is answered and the
/// connection goes on; one that is too long ends it.
pub fn serve(
    stream: TcpStream,
    register: &Register,
    info: &dyn Fn() -> ServerInfo,
) -> Result<(), LineError> {
    let mut reader = BufReader::new(stream);
    loop {
        let response = match line::read_message::<Request>(&mut reader, MAX_LINE) {
            Ok(None) => return Ok(()),
            Ok(Some(Request::Info)) => Response::Info(info()),
            Ok(Some(request)) => register.answer(&request),
            Err(LineError::Json(error)) => Response::Refused {
                reason: format!("not a valid request: {error}"),
            },
            Err(error) => {
                let refused = Response::Refused {
                    reason: error.to_string(),
                };
                // The connection ends with the first error; the answer is a courtesy.
                let _ = line::write_message(reader.get_mut(), &refused);
                return Err(error);
            }
        };
        line::write_message(reader.get_mut(), &response)?;
    }
}
