-- Rows are written as the owner of their table, and arrays among them in the composite types of this schema. Whoever may
-- use the schema can name what is in it; its tables stay with who has privileges on them.

GRANT USAGE ON SCHEMA pgsluice TO PUBLIC;
