import com.fasterxml.jackson.databind.JsonNode;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.header.ConnectHeaders;
import org.apache.kafka.connect.header.Header;
import org.apache.kafka.connect.source.SourceRecord;
import org.apache.kafka.connect.storage.SimpleHeaderConverter;
import org.apache.kafka.connect.transforms.Transformation;
import org.apache.kafka.connect.transforms.predicates.Predicate;

/**
 * Kafka Connect's own transforms and predicates as a witness: what {@link Witness} answers to the command {@code chain}.
 *
 * <p>{@code properties} are a connector's; {@code records} are [topic, value or null, [[header, text or null], ...]]. The
 * answer has the same for each record, or null for one that was dropped. Types are full class names.
 */
final class Chain {
    private static final SimpleHeaderConverter HEADERS = new SimpleHeaderConverter();

    private Chain() {}

    static List<Object> answer(JsonNode command) throws Exception {
        var properties = new HashMap<String, String>();
        command.get("properties").properties().forEach(each -> properties.put(each.getKey(), each.getValue().asText()));
        var answers = new ArrayList<Object>();
        for (var node : command.get("records")) {
            var record = read(node);
            for (String alias : properties.get("transforms").split(",")) {
                record = record == null ? null : apply(properties, alias, record);
            }
            answers.add(record == null ? List.of() : written(record));
        }
        return answers;
    }

    private static SourceRecord apply(Map<String, String> properties, String alias, SourceRecord record) throws Exception {
        var options = below(properties, "transforms." + alias + ".");
        String asked = options.remove("predicate");
        boolean negate = Boolean.parseBoolean(options.remove("negate"));
        if (asked != null && negate == holds(below(properties, "predicates." + asked + "."), record)) {
            return record;
        }
        try (Transformation<SourceRecord> transform = made(options.get("type"))) {
            transform.configure(options);
            return transform.apply(record);
        }
    }

    private static boolean holds(Map<String, String> options, SourceRecord record) throws Exception {
        try (Predicate<SourceRecord> predicate = made(options.get("type"))) {
            predicate.configure(options);
            return predicate.test(record);
        }
    }

    @SuppressWarnings("unchecked")
    private static <T> T made(String type) throws Exception {
        return (T) Class.forName(type).getDeclaredConstructor().newInstance();
    }

    private static Map<String, String> below(Map<String, String> properties, String prefix) {
        var found = new HashMap<String, String>();
        properties.forEach((key, value) -> {
            if (key.startsWith(prefix)) {
                found.put(key.substring(prefix.length()), value);
            }
        });
        return found;
    }

    private static SourceRecord read(JsonNode node) {
        var headers = new ConnectHeaders();
        String topic = node.get(0).asText();
        for (var header : node.get(2)) {
            byte[] text = header.get(1).isNull() ? null : header.get(1).asText().getBytes(StandardCharsets.UTF_8);
            headers.add(header.get(0).asText(), HEADERS.toConnectHeader(topic, header.get(0).asText(), text));
        }
        String value = node.get(1).isNull() ? null : node.get(1).asText();
        return new SourceRecord(Map.of(), Map.of(), topic, 0, null, null, Schema.OPTIONAL_STRING_SCHEMA, value, 0L, headers);
    }

    private static List<Object> written(SourceRecord record) {
        var headers = new ArrayList<List<String>>();
        for (Header header : record.headers()) {
            byte[] text = HEADERS.fromConnectHeader(record.topic(), header.key(), header.schema(), header.value());
            var row = new ArrayList<String>();
            row.add(header.key());
            row.add(text == null ? null : new String(text, StandardCharsets.UTF_8));
            headers.add(row);
        }
        var answer = new ArrayList<Object>();
        answer.add(record.topic());
        answer.add(record.value());
        answer.add(headers);
        return answer;
    }
}
