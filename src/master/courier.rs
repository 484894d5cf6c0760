//! Tunnels on their way from an old process to a new one: the thread that takes them there, and the
//! one that receives them.
//!
//! All that are given together arrive together or not at all: the new process runs none of them before
//! the old one has told it to, and until it has said that it does they are the old one's.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use super::handover::{Handover, Message, TUNNELS_MAX, unwrap_tunnels};
use crate::channel::{Delivery, Event, Events, Life};
use crate::http::tunnel::parcel::Parcel;
use crate::os;

/// How long the new process may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tunnels of several shards, by who gave them.
pub type Consignment = Vec<(Life, Vec<Parcel>)>;

/// The old process's side. Its threads end when the value is dropped and the new process is gone.
#[derive(Debug)]
pub struct Courier(Sender<(Delivery, Consignment)>);

/// Why tunnels have not arrived.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the new binary process is gone")]
    Gone,
    #[error("the new binary process does not answer")]
    Silent,
    #[error("the new binary process said something else")]
    OutOfTurn,
    #[error("sendmsg() failed ({0})")]
    Send(#[from] io::Error),
}

impl Courier {
    /// Starts to listen to the new process; what it says comes as events.
    pub fn start(line: Handover, events: Events) -> io::Result<Self> {
        let (consignments, orders) = mpsc::channel();
        let (answers, heard) = mpsc::channel();
        let listener = line.try_clone()?;
        let told = events.clone();
        spawn("ringx handover", move || listen(&listener, &answers, &told))?;
        spawn("ringx courier", move || carry(&line, &orders, &heard, &events))?;
        Ok(Courier(consignments))
    }

    /// [`Event::Delivered`] tells what has become of it.
    pub fn send(&self, delivery: Delivery, consignment: Consignment) {
        // The thread is there as long as this is.
        let _ = self.0.send((delivery, consignment));
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let run = move || {
        // No right that the master has is of use here.
        let _ = os::clear_capabilities();
        run();
    };
    thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

fn listen(line: &Handover, answers: &Sender<Message>, events: &Events) {
    while let Ok(Some((message, _))) = line.receive() {
        match message {
            Message::Ready { tunnels } => events.send(Event::SuccessorReady { tunnels }),
            // Nobody asked: nobody to tell.
            answer => drop(answers.send(answer)),
        }
    }
}

fn carry(
    line: &Handover,
    orders: &Receiver<(Delivery, Consignment)>,
    answers: &Receiver<Message>,
    events: &Events,
) {
    let mut is_closed = false;
    while let Ok((delivery, consignment)) = orders.recv() {
        let failure = if is_closed {
            Some(Failure::Gone)
        } else {
            // Whatever the new process has of it, it must never run when this one goes on with it.
            let failed = deliver(line, &consignment, answers).err();
            failed.filter(|_| {
                is_closed = true;
                !is_heard_at_the_end(line, answers, Message::Running)
            })
        };
        let count = consignment.iter().map(|(_, parcels)| parcels.len()).sum();
        events.send(Event::Delivered {
            delivery,
            count,
            // What has arrived is the new process's alone.
            failed: failure.map(|failure| (failure.to_string(), consignment)),
        });
    }
}

/// Closes the line, and tells whether this is among what had been said by then.
fn is_heard_at_the_end(line: &Handover, answers: &Receiver<Message>, message: Message) -> bool {
    line.close();
    let mut is_heard = false;
    // The listener ends with the line.
    while let Ok(answer) = answers.recv() {
        is_heard |= answer == message;
    }
    is_heard
}

fn deliver(
    line: &Handover,
    consignment: &Consignment,
    answers: &Receiver<Message>,
) -> Result<(), Failure> {
    for (_, parcels) in consignment {
        for parcels in parcels.chunks(TUNNELS_MAX) {
            line.send_tunnels(parcels)?;
            expect(answers, Message::Taken)?;
        }
    }
    line.send(Message::Run)?;
    expect(answers, Message::Running)
}

fn expect(answers: &Receiver<Message>, expected: Message) -> Result<(), Failure> {
    match answers.recv_timeout(PATIENCE) {
        Ok(answer) if answer == expected => Ok(()),
        Ok(_) => Err(Failure::OutOfTurn),
        Err(RecvTimeoutError::Timeout) => Err(Failure::Silent),
        Err(RecvTimeoutError::Disconnected) => Err(Failure::Gone),
    }
}

/// The new process's side: makes events of the tunnels that come, until the old one is gone.
pub fn receive(line: &Handover, events: Events) -> io::Result<()> {
    let line = line.try_clone()?;
    spawn("ringx handover", move || {
        let mut waiting = Vec::new();
        while let Ok(Some((message, descriptors))) = line.receive() {
            fault(message);
            let answered = match message {
                Message::Tunnels => unwrap_tunnels(descriptors).and_then(|parcels| {
                    waiting.extend(parcels);
                    line.send(Message::Taken)
                }),
                Message::Run => {
                    events.send(Event::Inherited { parcels: std::mem::take(&mut waiting) });
                    Ok(())
                }
                Message::Ready { .. } | Message::Taken | Message::Running => Ok(()),
            };
            if answered.is_err() {
                // The old process finds the line closed, and keeps what it has.
                return line.close();
            }
        }
    })
}

/// Ends the process at this message where a test asks for it.
fn fault(message: Message) {
    if cfg!(debug_assertions)
        && let Some(place) = std::env::var_os("RINGX_HANDOVER_FAULT")
        && place == format!("{message:?}").as_str()
    {
        std::process::abort();
    }
}
