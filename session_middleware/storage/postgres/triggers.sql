-- The triggers of the schema, as PostgreSQL has them.

CREATE FUNCTION raise_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := OLD.version + 1;
    RETURN NEW;
END $$;
CREATE TRIGGER sessions_version BEFORE UPDATE OF {version_columns} ON sessions
    FOR EACH ROW WHEN (NEW.version = OLD.version) EXECUTE FUNCTION raise_version();

CREATE FUNCTION index_message_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE index_sessions SET version = '', embedded_seq = LEAST(embedded_seq, OLD.seq - 1)
    WHERE session_id = OLD.session_id AND indexed_seq >= OLD.seq;
    RETURN NULL;
END $$;
CREATE TRIGGER index_message_changed AFTER UPDATE OF text, replaced_by ON messages
    FOR EACH ROW WHEN (NEW.text <> OLD.text OR NEW.replaced_by IS DISTINCT FROM OLD.replaced_by) EXECUTE FUNCTION index_message_changed();
CREATE TRIGGER index_message_deleted AFTER DELETE ON messages
    FOR EACH ROW EXECUTE FUNCTION index_message_changed();

CREATE FUNCTION message_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM sessions WHERE id = OLD.session_id) THEN
        UPDATE memories SET expires_at = '0' WHERE session_id = OLD.session_id AND message_id = OLD.message_id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER message_deleted AFTER DELETE ON messages FOR EACH ROW EXECUTE FUNCTION message_deleted();

CREATE FUNCTION message_renamed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE memories SET message_id = NEW.message_id WHERE session_id = OLD.session_id AND message_id = OLD.message_id;
    RETURN NULL;
END $$;
CREATE TRIGGER message_renamed AFTER UPDATE OF message_id ON messages
    FOR EACH ROW WHEN (NEW.message_id <> OLD.message_id) EXECUTE FUNCTION message_renamed();
