//! The container's services.

use std::sync::Arc;

use boxlite_portal::v1::container_server::Container;
use boxlite_portal::v1::container_start_response::Outcome;
use boxlite_portal::v1::{
    ContainerInitRequest, ContainerInitResponse, ContainerStartRequest, ContainerStartResponse, Started,
};
use tonic::{Request, Response, Status};

use super::{invalid, out_of_order};
use crate::agent::{self, Agent};
use crate::console;
use crate::container::{capabilities, launch};

/// See the proto file.
#[derive(Debug)]
pub(super) struct Service {
    agent: Arc<Agent>,
}

impl Service {
    pub(super) fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }
}

#[tonic::async_trait]
impl Container for Service {
    async fn init(
        &self,
        request: Request<ContainerInitRequest>,
    ) -> Result<Response<ContainerInitResponse>, Status> {
        let request = request.into_inner();
        let main = request.main.ok_or_else(|| Status::invalid_argument("the main command is missing"))?;
        launch::check(&main).map_err(invalid)?;
        let capabilities =
            capabilities::resolve(&request.capabilities_add, &request.capabilities_drop).map_err(invalid)?;
        let site = self.agent.claim_container().map_err(out_of_order)?;
        let agent = Arc::clone(&self.agent);
        // A task of its own: a client that goes away leaves no half of it.
        let created = tokio::spawn(async move {
            agent.create_container(main, capabilities, request.await_attach, site, &request.mounts).await
        });
        let created = created.await.map_err(|error| Status::internal(error.to_string()))?;
        created.map_err(|error| Status::internal(console::chain(&error)))?;
        Ok(Response::new(ContainerInitResponse {}))
    }

    async fn start(
        &self,
        _: Request<ContainerStartRequest>,
    ) -> Result<Response<ContainerStartResponse>, Status> {
        let mut outcome = self.agent.start_main().map_err(out_of_order)?;
        let outcome = match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(execution))) => Outcome::Started(Started { pid: execution.inner_pid }),
            Ok(Some(Err(failure))) => Outcome::Failure(failure.clone()),
            Ok(None) | Err(_) => Outcome::Failure(agent::lost()),
        };
        Ok(Response::new(ContainerStartResponse { outcome: Some(outcome) }))
    }
}
