-- The triggers of the schema, as PostgreSQL has them.

CREATE FUNCTION raise_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := OLD.version + 1;
    RETURN NEW;
END $$;
CREATE TRIGGER sessions_version BEFORE UPDATE OF {version_columns} ON sessions
    FOR EACH ROW WHEN (NEW.version = OLD.version) EXECUTE FUNCTION raise_version();

-- The lock is the one of `index_lock`: a process that is indexing the session has read the message as it was.
CREATE FUNCTION index_message_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM acquire_lock(E'\001\001index ' || OLD.session_id, false, true);
    UPDATE index_sessions SET version = '', embedded_seq = LEAST(embedded_seq, OLD.seq - 1)
    WHERE session_id = OLD.session_id AND indexed_seq >= OLD.seq;
    RETURN NULL;
END $$;
CREATE TRIGGER index_message_changed AFTER UPDATE OF text, replaced_by ON messages
    FOR EACH ROW WHEN (NEW.text <> OLD.text OR NEW.replaced_by IS DISTINCT FROM OLD.replaced_by) EXECUTE FUNCTION index_message_changed();

CREATE FUNCTION messages_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    each record;
BEGIN
    FOR each IN SELECT session_id, MIN(seq) AS seq FROM gone GROUP BY session_id ORDER BY session_id LOOP
        PERFORM acquire_lock(E'\001\001index ' || each.session_id, false, true);
        UPDATE index_sessions SET version = '', embedded_seq = LEAST(embedded_seq, each.seq - 1)
        WHERE session_id = each.session_id AND indexed_seq >= each.seq;
        IF EXISTS (SELECT 1 FROM sessions WHERE id = each.session_id) THEN
            UPDATE memories SET expires_at = '0'
            WHERE session_id = each.session_id AND message_id IN (SELECT message_id FROM gone WHERE session_id = each.session_id);
        END IF;
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER messages_deleted AFTER DELETE ON messages REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION messages_deleted();

CREATE FUNCTION message_renamed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE memories SET message_id = NEW.message_id WHERE session_id = OLD.session_id AND message_id = OLD.message_id;
    RETURN NULL;
END $$;
CREATE TRIGGER message_renamed AFTER UPDATE OF message_id ON messages
    FOR EACH ROW WHEN (NEW.message_id <> OLD.message_id) EXECUTE FUNCTION message_renamed();
