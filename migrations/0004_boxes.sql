-- Values of array types, each in a box: rows of arrays put together would become one array of more
-- dimensions. Sets of rows that travel in binary unpack them again.

CREATE TYPE pgsluice.boxed_bool AS (value pg_catalog.bool[]);
CREATE TYPE pgsluice.boxed_bpchar AS (value pg_catalog.bpchar[]);
CREATE TYPE pgsluice.boxed_bytea AS (value pg_catalog.bytea[]);
CREATE TYPE pgsluice.boxed_date AS (value pg_catalog.date[]);
CREATE TYPE pgsluice.boxed_float4 AS (value pg_catalog.float4[]);
CREATE TYPE pgsluice.boxed_float8 AS (value pg_catalog.float8[]);
CREATE TYPE pgsluice.boxed_inet AS (value pg_catalog.inet[]);
CREATE TYPE pgsluice.boxed_int2 AS (value pg_catalog.int2[]);
CREATE TYPE pgsluice.boxed_int4 AS (value pg_catalog.int4[]);
CREATE TYPE pgsluice.boxed_int8 AS (value pg_catalog.int8[]);
CREATE TYPE pgsluice.boxed_json AS (value pg_catalog.json[]);
CREATE TYPE pgsluice.boxed_jsonb AS (value pg_catalog.jsonb[]);
CREATE TYPE pgsluice.boxed_numeric AS (value pg_catalog.numeric[]);
CREATE TYPE pgsluice.boxed_text AS (value pg_catalog.text[]);
CREATE TYPE pgsluice.boxed_time AS (value pg_catalog.time[]);
CREATE TYPE pgsluice.boxed_timestamp AS (value pg_catalog.timestamp[]);
CREATE TYPE pgsluice.boxed_timestamptz AS (value pg_catalog.timestamptz[]);
CREATE TYPE pgsluice.boxed_uuid AS (value pg_catalog.uuid[]);
CREATE TYPE pgsluice.boxed_varchar AS (value pg_catalog.varchar[]);
