"""The way from every earlier schema to `pki.store.schema`, by Alembic. Each step is frozen: it says what was then."""
