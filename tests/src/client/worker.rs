//! One client: a thread with one connection that sends requests, and writes
//! down what became of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use redis::{Connection, RedisError, Value};

use super::plan::Plan;
use super::{NOT_WAITING, Options, Shared};
use crate::history::{Answer, Event, Op};

/// Pause before another attempt when a connection was refused.
const RETRY: Duration = Duration::from_millis(50);
/// How long one attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Operations a request when the keys are read at the end.
const FINAL_BATCH: usize = 32;

pub struct Worker {
    client: u32,
    options: Arc<Options>,
    shared: Arc<Shared>,
    plan: Plan,
    link: Option<Connection>,
    connection: u32,
    last_answer_ns: u64,
    pub events: Vec<Event>,
}

impl Worker {
    /// A client with its first connection.
    pub fn connect(
        client: u32,
        options: Arc<Options>,
        shared: Arc<Shared>,
    ) -> Result<Self, RedisError> {
        let link = Some(connect(&options)?);
        Ok(Self {
            client,
            plan: Plan::new(&options, client),
            options,
            shared,
            link,
            connection: 0,
            last_answer_ns: 0,
            events: Vec::new(),
        })
    }

    /// Sends requests until the load is stopped.
    pub fn run(mut self) -> Self {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if self.link.is_none() && self.reconnect().is_err() {
                thread::sleep(RETRY);
                continue;
            }
            let batch = self.plan.next_batch();
            // A failure has been written down; the next round reconnects.
            let _ = self.request(batch);
            if !self.options.pause.is_zero() {
                thread::sleep(self.options.pause);
            }
        }
        self
    }

    /// Reads each of `keys`, as further events of this client.
    pub fn read_once_more(&mut self, keys: Vec<String>) -> Result<(), RedisError> {
        for keys in keys.chunks(FINAL_BATCH) {
            if self.link.is_none() {
                self.reconnect()?;
            }
            self.request(keys.iter().map(|key| (key.clone(), Op::Get)).collect())?;
        }
        Ok(())
    }

    fn reconnect(&mut self) -> Result<(), RedisError> {
        self.link = Some(connect(&self.options)?);
        self.connection += 1;
        self.shared.reconnects.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Sends one pipeline and takes its answers. When the connection breaks,
    /// the operations without an answer stay without one and the connection
    /// is given up.
    fn request(&mut self, batch: Vec<(String, Op)>) -> Result<(), RedisError> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let bytes = packed(&batch);
        let first = self.events.len();
        let invoke_ns = self.shared.now_ns();
        for (key, op) in batch {
            self.events.push(Event {
                client: self.client,
                connection: self.connection,
                key,
                op,
                invoke_ns,
                return_ns: None,
                answer: None,
            });
        }
        let waiting = &self.shared.waiting_since[self.client as usize];
        waiting.store(invoke_ns, Ordering::Relaxed);
        let mut result = link.send_packed_command(&bytes);
        for event in &mut self.events[first..] {
            if result.is_err() {
                self.shared.unanswered.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            match link.recv_response() {
                Ok(value) => {
                    let now = self.shared.now_ns();
                    event.return_ns = Some(now);
                    event.answer = Some(answer(value));
                    let wait = now - self.last_answer_ns.max(invoke_ns);
                    self.last_answer_ns = now;
                    self.shared.answered.fetch_add(1, Ordering::Relaxed);
                    let shared = &self.shared;
                    shared.last_answer_ns.fetch_max(now, Ordering::Relaxed);
                    shared.longest_wait_ns.fetch_max(wait, Ordering::Relaxed);
                    waiting.store(now, Ordering::Relaxed);
                }
                Err(error) => {
                    self.shared.unanswered.fetch_add(1, Ordering::Relaxed);
                    result = Err(error);
                }
            }
        }
        waiting.store(NOT_WAITING, Ordering::Relaxed);
        if result.is_err() {
            self.link = None;
        }
        result
    }
}

fn connect(options: &Options) -> Result<Connection, RedisError> {
    let client = redis::Client::open(format!("redis://{}/", options.address))?;
    let link = client.get_connection_with_timeout(CONNECT)?;
    link.set_read_timeout(Some(options.timeout))?;
    link.set_write_timeout(Some(options.timeout))?;
    Ok(link)
}

fn packed(batch: &[(String, Op)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, op) in batch {
        let mut command = match op {
            Op::Incr => redis::cmd("INCR"),
            Op::Get => redis::cmd("GET"),
            Op::Set(_) => redis::cmd("SET"),
            Op::Append(_) => redis::cmd("APPEND"),
        };
        command.arg(key);
        if let Op::Set(text) | Op::Append(text) = op {
            command.arg(text);
        }
        bytes.extend_from_slice(&command.get_packed_command());
    }
    bytes
}

fn answer(value: Value) -> Answer {
    match value {
        Value::Okay => Answer::Ok,
        Value::Nil => Answer::Nil,
        Value::Int(number) => Answer::Integer(number),
        Value::BulkString(bytes) => Answer::Text(String::from_utf8_lossy(&bytes).into_owned()),
        Value::SimpleString(text) => Answer::Text(text),
        Value::ServerError(error) => Answer::Error(error.to_string()),
        other => Answer::Text(format!("{other:?}")),
    }
}
