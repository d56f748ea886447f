"""Runs the migrations on the connection that `Database.migrate` passes."""

from alembic import context

from serve.database.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=False)
context.run_migrations()
