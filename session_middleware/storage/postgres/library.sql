-- Functions that SQLite has and PostgreSQL lacks, as far as the statements of the package use them.

CREATE FUNCTION json_each(j text) RETURNS TABLE (key text, value text, type text, atom text)
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 10 AS $$
    SELECT e.key, e.value #>> '{}', kind, CASE WHEN kind IN ('array', 'object') THEN NULL ELSE e.value #>> '{}' END
    FROM (
        SELECT (n - 1)::text AS key, v AS value FROM json_array_elements(CASE WHEN json_typeof(j::json) = 'array' THEN j::json ELSE '[]' END) WITH ORDINALITY AS a (v, n)
        UNION ALL SELECT o.key, o.value FROM pg_catalog.json_each(CASE WHEN json_typeof(j::json) = 'object' THEN j::json ELSE '{}' END) AS o
        UNION ALL SELECT NULL, j::json WHERE json_typeof(j::json) NOT IN ('array', 'object')
    ) AS e, LATERAL (SELECT CASE json_typeof(e.value) WHEN 'string' THEN 'text' WHEN 'boolean' THEN e.value #>> '{}'
        WHEN 'number' THEN CASE WHEN e.value #>> '{}' ~ '[.eE]' THEN 'real' ELSE 'integer' END ELSE json_typeof(e.value) END AS kind) AS k
$$;
-- Not STRICT, so that it is inlined: two indexes of events are computed with it.
CREATE FUNCTION json_extract(j text, path text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT j::json #>> string_to_array(trim(BOTH '.' FROM replace(replace(substr(path, 2), '[', '.'), ']', '')), '.')
$$;
CREATE FUNCTION json_set(j text, path text, value text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT jsonb_set(j::jsonb, ARRAY[substr(path, 3)], COALESCE(to_jsonb(value), 'null'))::text
$$;
CREATE FUNCTION json_set(j text, path text, value double precision) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT jsonb_set(j::jsonb, ARRAY[substr(path, 3)], COALESCE(to_jsonb(value), 'null'))::text
$$;
CREATE FUNCTION json_valid(j text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN RETURN j::json IS NOT NULL; EXCEPTION WHEN OTHERS THEN RETURN false; END $$;
CREATE FUNCTION json_pair(name text, value text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT json_build_object(name, value)::text
$$;
CREATE FUNCTION instr(within text, what text) RETURNS integer LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$ SELECT position(what IN within) $$;
CREATE FUNCTION instr(within bytea, what bytea) RETURNS integer LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$ SELECT position(what IN within) $$;
CREATE FUNCTION julianday(moment text) RETURNS double precision LANGUAGE sql STABLE STRICT PARALLEL SAFE AS $$
    SELECT extract(epoch FROM moment::timestamptz)::double precision / 86400.0 + 2440587.5
$$;
CREATE FUNCTION round(x double precision, places integer) RETURNS double precision LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT pg_catalog.round(x::numeric, places)::double precision
$$;
CREATE FUNCTION min(a bigint, b bigint) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$ SELECT LEAST(a, b) $$;
CREATE FUNCTION max(a bigint, b bigint) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$ SELECT GREATEST(a, b) $$;
CREATE FUNCTION json_insert(j text, path text, value text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (j::jsonb || to_jsonb(value))::text
$$;
CREATE FUNCTION json_group_array_add(so_far text[], value text) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT so_far || value
$$;
CREATE FUNCTION json_group_array_end(so_far text[]) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT to_json(so_far)::text $$;
CREATE AGGREGATE json_group_array(text) (SFUNC = json_group_array_add, STYPE = text[], FINALFUNC = json_group_array_end, INITCOND = '{}');
CREATE FUNCTION json_remove(j text, path text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (j::jsonb - substr(path, 3))::text
$$;
CREATE FUNCTION json_set(j text, path text, value bigint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT jsonb_set(j::jsonb, ARRAY[substr(path, 3)], COALESCE(to_jsonb(value), 'null'))::text
$$;
CREATE FUNCTION hex(b bytea) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$ SELECT encode(b, 'hex') $$;
CREATE FUNCTION max(VARIADIC numbers bigint[]) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT max(n) FROM unnest(numbers) AS n
$$;

-- Expectations: a result that would only be compared is checked in SQL. The error takes no round trip.
CREATE FUNCTION expect_row(count bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF count = 0 THEN RAISE 'no row was updated' USING ERRCODE = 'SM001'; END IF;
END $$;
CREATE FUNCTION expect_no_row(count bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF count > 0 THEN RAISE 'a row was found' USING ERRCODE = 'SM003'; END IF;
END $$;


-- Locks until the end of the transaction. A session's id names the lock of its family.
CREATE FUNCTION lock_key(name text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN RETURN hashtextextended(COALESCE((SELECT family_id FROM sessions WHERE id = name), name), 7236); END $$;
CREATE FUNCTION acquire_lock(name text, is_shared boolean, may_wait boolean) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    wanted bigint;
    locked bigint;
BEGIN
    LOOP
        wanted := lock_key(name);
        IF wanted = locked THEN RETURN true; END IF;  -- it is still the family after the wait
        IF NOT may_wait THEN
            IF NOT (CASE WHEN is_shared THEN pg_try_advisory_xact_lock_shared(wanted) ELSE pg_try_advisory_xact_lock(wanted) END)
            THEN RETURN false; END IF;
        ELSIF is_shared THEN PERFORM pg_advisory_xact_lock_shared(wanted);
        ELSE PERFORM pg_advisory_xact_lock(wanted);
        END IF;
        locked := wanted;
    END LOOP;
END $$;
CREATE FUNCTION expect_lock(is_acquired boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT is_acquired THEN RAISE 'the lock is not free' USING ERRCODE = 'SM002'; END IF;
END $$;
-- Wait for several locks in the order of their keys, as all transactions do. The names are JSON arrays.
CREATE FUNCTION acquire_locks(names text, shared_names text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wanted record;
    locked bigint[] := '{}';
    count integer := -1;
BEGIN
    WHILE count < cardinality(locked) LOOP  -- once more, in case a session has another family after the wait
        count := cardinality(locked);
        FOR wanted IN
            SELECT key, bool_and(is_shared) AS is_shared FROM (
                SELECT lock_key(value) AS key, false AS is_shared FROM json_each(names)
                UNION ALL SELECT lock_key(value), true FROM json_each(shared_names)
            ) AS each_name WHERE key <> ALL (locked) GROUP BY key ORDER BY key
        LOOP
            IF wanted.is_shared THEN PERFORM pg_advisory_xact_lock_shared(wanted.key);
            ELSE PERFORM pg_advisory_xact_lock(wanted.key);
            END IF;
            locked := locked || wanted.key;
        END LOOP;
    END LOOP;
END $$;
