-- Initial content of the publisher in docker/compose.yaml. psql runs this once, as superuser, in
-- database "example". docs/security.md explains each privilege.
\set ON_ERROR_STOP on
\set sammy_password `cat /run/secrets/sammy_password`

CREATE TABLE widgets (
    id serial,
    name text,
    price decimal,
    CONSTRAINT widgets_pkey PRIMARY KEY (id)
);
INSERT INTO widgets (name, price) VALUES ('Hammer', 4.50), ('Coffee Mug', 6.20), ('Cupholder', 3.80);

CREATE ROLE sammy LOGIN REPLICATION PASSWORD :'sammy_password';
REVOKE CONNECT, TEMPORARY ON DATABASE example FROM PUBLIC;
GRANT CONNECT ON DATABASE example TO sammy;
GRANT USAGE ON SCHEMA public TO sammy;
GRANT SELECT ON widgets TO sammy;

CREATE PUBLICATION my_publication;
ALTER PUBLICATION my_publication ADD TABLE widgets;
