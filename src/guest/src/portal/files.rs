//! The services of files.

use std::sync::Arc;

use boxlite_portal::limits;
use boxlite_portal::v1::files_server;
use boxlite_portal::v1::{
    ListRequest, ListResponse, MakeFolderRequest, MakeFolderResponse, RemoveRequest, RemoveResponse,
    RenameRequest, RenameResponse, StatRequest, StatResponse, WatchRequest, WatchResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::out_of_order;
use crate::agent::{Agent, Running};
use crate::files::entry;
use crate::files::path::BoxPath;
use crate::files::watch::Watch;

/// How many messages may wait for the connection.
const QUEUE: usize = 4;

/// See the proto file.
#[derive(Debug)]
pub(super) struct Service {
    agent: Arc<Agent>,
}

impl Service {
    pub(super) fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }

    fn running(&self) -> Result<Arc<Running>, Status> {
        self.agent.running().map_err(out_of_order)
    }
}

#[tonic::async_trait]
impl files_server::Files for Service {
    async fn stat(&self, request: Request<StatRequest>) -> Result<Response<StatResponse>, Status> {
        let StatRequest { path, follow } = request.into_inner();
        let path = BoxPath::new(path)?;
        let info = self.running()?.place.run(move || entry::stat(&path, follow)).await?;
        Ok(Response::new(StatResponse { info: Some(info) }))
    }

    type ListStream = ReceiverStream<Result<ListResponse, Status>>;

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let path = BoxPath::new(request.into_inner().path)?;
        let turn = self.running()?.place.turn().await?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        turn.start(move |entered| {
            let send = |message: Result<ListResponse, Status>| sender.blocking_send(message).is_ok();
            let listed = entered.and_then(|()| {
                entry::list(&path, |entries| {
                    // Names and links are long at most as the system allows, which a message does not hold so often.
                    let mut messages = split(entries);
                    messages.all(|entries| send(Ok(ListResponse { entries })))
                })
            });
            if let Err(error) = listed {
                send(Err(error.into()));
            }
        })?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn make_folder(
        &self,
        request: Request<MakeFolderRequest>,
    ) -> Result<Response<MakeFolderResponse>, Status> {
        let MakeFolderRequest { path, parents, mode, owner } = request.into_inner();
        let (path, running) = (BoxPath::new(path)?, self.running()?);
        let mode = if mode == 0 { 0o755 } else { mode & 0o7777 };
        let owner = running.owner(&owner)?;
        running.place.run(move || entry::make_folder(&path, parents, mode, owner)).await?;
        Ok(Response::new(MakeFolderResponse {}))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<RemoveResponse>, Status> {
        let RemoveRequest { path, recursive } = request.into_inner();
        let path = BoxPath::new(path)?;
        self.running()?.place.run(move || entry::remove(&path, recursive)).await?;
        Ok(Response::new(RemoveResponse {}))
    }

    async fn rename(&self, request: Request<RenameRequest>) -> Result<Response<RenameResponse>, Status> {
        let RenameRequest { from, to, keep_existing } = request.into_inner();
        let (from, to) = (BoxPath::new(from)?, BoxPath::new(to)?);
        self.running()?.place.run(move || entry::rename(&from, &to, keep_existing)).await?;
        Ok(Response::new(RenameResponse {}))
    }

    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let WatchRequest { path, recursive } = request.into_inner();
        let path = BoxPath::new(path)?;
        let turn = self.running()?.place.turn().await?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        turn.start(move |entered| match entered.and_then(|()| Watch::start(&path, recursive)) {
            // The first message says that the watch has begun.
            Ok(watch) => {
                if sender.blocking_send(Ok(WatchResponse::default())).is_ok() {
                    watch.run(&sender);
                }
            }
            // An error means that the client has gone.
            Err(error) => drop(sender.blocking_send(Err(Status::from(error)))),
        })?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Cuts a batch so that each part fits into a message.
fn split(
    entries: Vec<boxlite_portal::v1::FileInfo>,
) -> impl Iterator<Item = Vec<boxlite_portal::v1::FileInfo>> {
    let mut entries = entries.into_iter().peekable();
    std::iter::from_fn(move || {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while let Some(entry) = entries
            .next_if(|entry| bytes == 0 || bytes + prost::Message::encoded_len(entry) < limits::MESSAGE / 2)
        {
            bytes += prost::Message::encoded_len(&entry);
            part.push(entry);
        }
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use boxlite_portal::v1::FileInfo;

    #[test]
    fn a_batch_of_long_names_becomes_messages_that_fit() {
        let long = FileInfo { link_target: vec![b'x'; 4095], ..Default::default() };
        let parts: Vec<_> = split(vec![long; 256]).collect();
        assert!(parts.len() > 1);
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 256);
        for entries in parts {
            assert!(prost::Message::encoded_len(&ListResponse { entries }) < limits::MESSAGE);
        }
        assert_eq!(split(Vec::new()).count(), 0);
    }
}
