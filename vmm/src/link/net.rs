//! The link to the switch.
//!
//! Frames come in numbered, so that the switch can be told which of them are safe in the log; when
//! this replica goes live the switch is told, and answers whether it is the one.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crossbeam_channel::Sender;
use wire::netport::{
    FromSwitch, Hello, Message, NetportClient, NetportCloser, NetportError, NetportReceiver,
    NetportSender,
};

use super::{Arrival, CONNECT_TIMEOUT, Closed, RECONNECT_PAUSE, lock, spawn};

/// How a replica presents itself to the switch.
#[derive(Clone, Debug)]
pub struct NetSpec {
    /// `HOST:PORT` of the switch's replica port.
    pub addr: String,
    pub hello: Hello,
}

#[derive(Clone)]
pub struct NetLink(Arc<Link>);

struct Link {
    state: Mutex<State>,
    /// This replica has gone live in a later view, or the link is closed.
    changed: Condvar,
    closed: Closed,
}

struct State {
    spec: NetSpec,
    sender: Option<NetportSender>,
    closer: Option<NetportCloser>,
    /// Which connection this is, from 1.
    connection: u64,
}

impl NetLink {
    /// Connects, and keeps connected. The first connection must succeed.
    pub fn open(spec: NetSpec, arrivals: Sender<Arrival>) -> Result<Self, NetportError> {
        let (sender, receiver) =
            NetportClient::connect(&spec.addr, &spec.hello, CONNECT_TIMEOUT)?.split();
        let state = State {
            spec,
            closer: Some(sender.closer()?),
            sender: Some(sender),
            connection: 1,
        };
        let link = Self(Arc::new(Link {
            state: Mutex::new(state),
            changed: Condvar::new(),
            closed: Closed::default(),
        }));
        let keeper = link.clone();
        spawn("net", move || keeper.0.keep(receiver, &arrivals)).map_err(NetportError::from)?;
        Ok(link)
    }

    /// Sends a frame of the guest. While the switch is away frames are dropped, as on a cable that
    /// is not plugged in.
    pub fn transmit(&self, frame: &[u8]) {
        let mut state = lock(&self.0.state);
        if let Some(sender) = &mut state.sender
            && let Err(why) = sender.frame(frame)
        {
            tracing::debug!(%why, "frame dropped");
            state.disconnect();
        }
    }

    /// The first `number` frames of `connection` are in the log and acknowledged.
    pub fn consumed(&self, connection: u64, number: u64) {
        let mut state = lock(&self.0.state);
        if state.connection != connection {
            return;
        }
        if let Some(sender) = &mut state.sender
            && sender.consumed(number).is_err()
        {
            state.disconnect();
        }
    }

    /// This replica is live in `view` from now on; also whenever it connects again.
    pub fn go_live(&self, view: u64) {
        let mut state = lock(&self.0.state);
        state.spec.hello.view = view;
        state.spec.hello.live = true;
        if let Some(sender) = &mut state.sender
            && sender.go_live(view).is_err()
        {
            state.disconnect();
        }
        self.0.changed.notify_all();
    }

    /// Ends the link; nothing is sent or received any more.
    pub fn close(&self) {
        self.0.closed.set();
        lock(&self.0.state).disconnect();
        self.0.changed.notify_all();
    }
}

impl Link {
    fn keep(&self, mut receiver: NetportReceiver, arrivals: &Sender<Arrival>) {
        loop {
            let connection = lock(&self.state).connection;
            let why = receive(connection, &mut receiver, arrivals);
            if self.closed.is_set() {
                return;
            }
            if let Ended::Fenced { view } = why {
                self.wait_for_later_view(view);
            }
            lock(&self.state).disconnect();
            match self.reconnect(arrivals) {
                Some(next) => receiver = next,
                None => return,
            }
        }
    }

    fn reconnect(&self, arrivals: &Sender<Arrival>) -> Option<NetportReceiver> {
        let mut told = false;
        while !self.closed.is_set() {
            let spec = lock(&self.state).spec.clone();
            match NetportClient::connect(&spec.addr, &spec.hello, CONNECT_TIMEOUT) {
                Ok(client) => {
                    let (sender, receiver) = client.split();
                    let mut state = lock(&self.state);
                    if state.spec.hello != spec.hello {
                        continue; // went live meanwhile
                    }
                    state.closer = sender.closer().ok();
                    state.sender = Some(sender);
                    state.connection += 1;
                    return Some(receiver);
                }
                Err(NetportError::Refused(reason)) => {
                    let _ = arrivals.send(Arrival::Fenced {
                        by: "the switch",
                        view: spec.hello.view,
                        reason,
                    });
                    self.wait_for_later_view(spec.hello.view);
                    continue;
                }
                Err(why) if !told => {
                    tracing::warn!(%why, "the switch is away; trying again");
                    told = true;
                }
                Err(_) => {}
            }
            std::thread::sleep(RECONNECT_PAUSE);
        }
        None
    }

    /// A fenced link rests, unless this replica itself goes live in a later view.
    fn wait_for_later_view(&self, view: u64) {
        let mut state = lock(&self.state);
        while !self.closed.is_set() && state.spec.hello.view <= view {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn disconnect(&mut self) {
        self.sender = None;
        if let Some(closer) = self.closer.take() {
            closer.close();
        }
    }
}

enum Ended {
    Fenced { view: u64 },
    Lost,
}

/// Takes frames until the connection ends.
fn receive(connection: u64, receiver: &mut NetportReceiver, arrivals: &Sender<Arrival>) -> Ended {
    let mut number = 0;
    loop {
        let arrival = match receiver.recv() {
            Ok(Message::Frame(frame)) => {
                number += 1;
                Arrival::Frame {
                    connection,
                    number,
                    frame,
                }
            }
            Ok(Message::Control(FromSwitch::Fenced { view })) => {
                let reason = format!("a replica of view {view} is live");
                let _ = arrivals.send(Arrival::Fenced {
                    by: "the switch",
                    view: view.saturating_sub(1),
                    reason,
                });
                return Ended::Fenced { view };
            }
            Ok(Message::Control(message)) => {
                tracing::debug!(?message, "switch");
                continue;
            }
            Err(why) => {
                tracing::debug!(%why, "switch connection");
                return Ended::Lost;
            }
        };
        if arrivals.send(arrival).is_err() {
            return Ended::Lost;
        }
    }
}
