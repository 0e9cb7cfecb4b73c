-- Initial content of the target in docker/compose.yaml. psql runs this once, as superuser, in database
-- "example". docs/security.md explains each privilege.
\set ON_ERROR_STOP on
\set pgsluice_apply_password `cat /run/secrets/pgsluice_apply_password`

-- The table has more columns than the publisher's, each of a kind that a new row can do without.
CREATE TABLE widgets (
    id serial,
    name text,
    price decimal,
    shelf text NOT NULL DEFAULT 'A1',
    loaded_at timestamptz DEFAULT now(),
    CONSTRAINT widgets_pkey PRIMARY KEY (id)
);

CREATE ROLE pgsluice_apply LOGIN PASSWORD :'pgsluice_apply_password';
REVOKE CONNECT, TEMPORARY ON DATABASE example FROM PUBLIC;
GRANT CONNECT, CREATE ON DATABASE example TO pgsluice_apply;
GRANT USAGE ON SCHEMA public TO pgsluice_apply;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON widgets TO pgsluice_apply;
GRANT SET ON PARAMETER session_replication_role TO pgsluice_apply;
GRANT EXECUTE ON FUNCTION
    pg_catalog.pg_replication_origin_oid(text),
    pg_catalog.pg_replication_origin_create(text),
    pg_catalog.pg_replication_origin_drop(text),
    pg_catalog.pg_replication_origin_session_setup(text),
    pg_catalog.pg_replication_origin_session_reset()
    TO pgsluice_apply;
