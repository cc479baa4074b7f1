import com.fasterxml.jackson.core.JsonGenerator;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.SplittableRandom;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.PartitionInfo;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * The official clients as a witness: reads one JSON command a line from stdin, answers in JSON lines on stdout.
 *
 * <p>Commands name an {@code op} and its arguments; keys, values and header values are base64 or null. The last line of
 * an answer is {@code {"ok": ...}} or {@code {"error": text}}; {@code dump} sends a line {@code [partition, offset,
 * timestamp type, timestamp, key, value, [[header, value], ...]]} for every record before it. The end of stdin ends the
 * program, so it never outlives the test run. Kafka's own messages go to stderr.
 */
public final class Witness {
    private static final Duration POLL = Duration.ofMillis(500);
    private static final long ANSWER_TIMEOUT_S = 60;
    private static final long PROGRESS_TIMEOUT_NS = TimeUnit.SECONDS.toNanos(30);

    private final ObjectMapper json = new ObjectMapper();
    private final JsonGenerator answers;
    private final Transactions transactions = new Transactions();

    private Witness(OutputStream out) throws IOException {
        answers = json.createGenerator(out);
        answers.setRootValueSeparator(null);
    }

    public static void main(String[] arguments) throws IOException {
        System.setOut(System.err); // no library may write between our lines
        var witness = new Witness(new FileOutputStream(FileDescriptor.out));
        var commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = commands.readLine(); line != null; line = commands.readLine()) {
            witness.answer(line);
        }
    }

    private void answer(String line) throws IOException {
        Object result;
        String outcome = "ok";
        try {
            var command = json.readTree(line);
            String op = command.get("op").asText();
            result = switch (op) {
                case "produce" -> produce(command);
                case "dump" -> dump(command);
                case "fill" -> fill(command);
                case "transaction" -> transactions.answer(command);
                case "chain" -> Chain.answer(command);
                default -> Mm2.answer(op, command);
            };
        } catch (Exception problem) {
            outcome = "error";
            result = describe(problem);
        }
        answers.writePOJO(Map.of(outcome, result));
        endLine();
        answers.flush();
    }

    private static String describe(Throwable problem) {
        return problem.getCause() == null ? problem.toString() : problem + ", because " + describe(problem.getCause());
    }

    private void endLine() throws IOException {
        answers.writeRaw('\n');
    }

    /** Writes the given records in order; their offsets, one each, in the same order. */
    private List<Long> produce(JsonNode command) throws Exception {
        var config = clientConfig(command);
        boolean transactional = config.containsKey("transactional.id");
        var sent = new ArrayList<Future<RecordMetadata>>();
        try (var producer = newProducer(config)) {
            if (transactional) {
                producer.initTransactions();
                producer.beginTransaction();
            }
            for (var record : command.get("records")) {
                sent.add(producer.send(toRecord(command.get("topic").asText(), record)));
            }
            producer.flush(); // before an abort as well, which would otherwise forget what was not yet sent
            if (transactional && command.path("abort").asBoolean()) {
                producer.abortTransaction();
            } else if (transactional) {
                producer.commitTransaction();
            }
        }
        var offsets = new ArrayList<Long>();
        for (var one : sent) {
            offsets.add(one.get(ANSWER_TIMEOUT_S, TimeUnit.SECONDS).offset());
        }
        return offsets;
    }

    static ProducerRecord<byte[], byte[]> toRecord(String topic, JsonNode node) throws IOException {
        Long timestamp = node.get("timestamp").isNull() ? null : node.get("timestamp").asLong();
        int partition = node.get("partition").asInt();
        var key = node.get("key").binaryValue();
        var value = node.get("value").binaryValue();
        var record = new ProducerRecord<>(topic, partition, timestamp, key, value);
        for (var header : node.get("headers")) {
            record.headers().add(header.get(0).asText(), header.get(1).binaryValue());
        }
        return record;
    }

    /** Sends a line for every record from the log starts to the ends that stood at the beginning; what was read. */
    private Map<String, Object> dump(JsonNode command) throws Exception {
        var config = clientConfig(command);
        config.put("enable.auto.commit", "false");
        config.put("auto.offset.reset", "none");
        config.put("isolation.level", command.get("isolation").asText());
        var bytes = new ByteArrayDeserializer();
        try (var consumer = new KafkaConsumer<>(config, bytes, bytes)) {
            var partitions = new ArrayList<TopicPartition>();
            for (PartitionInfo info : consumer.partitionsFor(command.get("topic").asText())) {
                partitions.add(new TopicPartition(info.topic(), info.partition()));
            }
            var ends = consumer.endOffsets(partitions);
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            return Map.of("records", writeUpTo(ends, consumer), "partitions", partitions.size());
        }
    }

    private long writeUpTo(Map<TopicPartition, Long> ends, KafkaConsumer<byte[], byte[]> consumer) throws Exception {
        long count = 0;
        long before = -1;
        long deadline = System.nanoTime() + PROGRESS_TIMEOUT_NS;
        while (true) {
            long reached = 0; // by position, because control records and aborted data are passed over in silence
            boolean finished = true;
            for (var end : ends.entrySet()) {
                long position = consumer.position(end.getKey());
                reached += position;
                finished &= position >= end.getValue();
            }
            if (finished) {
                return count;
            }
            if (reached > before) {
                deadline = System.nanoTime() + PROGRESS_TIMEOUT_NS;
            } else if (System.nanoTime() > deadline) {
                throw new TimeoutException("no progress before the ends " + ends);
            }
            before = reached;
            for (var record : consumer.poll(POLL)) {
                if (record.offset() < ends.get(new TopicPartition(record.topic(), record.partition()))) {
                    write(record);
                    count++;
                }
            }
        }
    }

    private void write(ConsumerRecord<byte[], byte[]> record) throws IOException {
        answers.writeStartArray();
        answers.writeNumber(record.partition());
        answers.writeNumber(record.offset());
        answers.writeString(record.timestampType().toString());
        answers.writeNumber(record.timestamp());
        writeBytes(record.key());
        writeBytes(record.value());
        answers.writeStartArray();
        for (Header header : record.headers()) {
            answers.writeStartArray();
            answers.writeString(header.key());
            writeBytes(header.value());
            answers.writeEndArray();
        }
        answers.writeEndArray();
        answers.writeEndArray();
        endLine();
    }

    private void writeBytes(byte[] bytes) throws IOException {
        if (bytes == null) {
            answers.writeNull();
        } else {
            answers.writeBinary(bytes);
        }
    }

    /** Writes {@code count} generated records round robin to all partitions; what that took. */
    private Map<String, Object> fill(JsonNode command) throws Exception {
        String topic = command.get("topic").asText();
        int partitions = command.get("partitions").asInt();
        long count = command.get("count").asLong();
        var lines = new LogLines(command.get("seed").asLong(), command.get("record_bytes").asInt());
        var failure = new AtomicReference<Exception>();
        long start = System.nanoTime();
        long valueBytes = 0;
        try (var producer = newProducer(clientConfig(command))) {
            for (long sent = 0; sent < count && failure.get() == null; sent++) {
                byte[] value = lines.next();
                valueBytes += value.length;
                int partition = (int) (sent % partitions);
                producer.send(new ProducerRecord<>(topic, partition, lines.key(), value), (metadata, problem) -> {
                    if (problem != null) {
                        failure.compareAndSet(null, problem);
                    }
                });
            }
        }
        if (failure.get() != null) {
            throw failure.get();
        }
        double seconds = (System.nanoTime() - start) / 1e9;
        return Map.of("count", count, "value_bytes", valueBytes, "seconds", seconds);
    }

    static KafkaProducer<byte[], byte[]> newProducer(Properties config) {
        return new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer());
    }

    static Properties clientConfig(JsonNode command) {
        var config = new Properties();
        config.put("bootstrap.servers", command.get("bootstrap").asText());
        for (var property : command.path("config").properties()) {
            config.put(property.getKey(), property.getValue().asText());
        }
        return config;
    }

    /** Service log lines in JSON, the same for the same seed: repetitive as logs are, and random as identifiers are. */
    private static final class LogLines {
        private static final String[] LEVELS = {"INFO", "INFO", "INFO", "INFO", "INFO", "DEBUG", "WARN", "ERROR"};
        private static final String[] WORDS = (
                "accepted account address answer balance basket batch cache call carrier catalogue change charge"
                + " checkout client commit confirmed customer declined delivery discount entry expired failed"
                + " fetched index invoice item ledger limit loaded lookup merchant missing order page partner payment"
                + " pending price product queue rate received refund region rejected reply request reserved result"
                + " retry route saved search session shipment stock stored ticket timeout token total update user"
                + " validated voucher warehouse")
            .split(" ");
        private static final long FIRST_TIME_MS = 1_700_000_000_000L;

        private final SplittableRandom random;
        private final int size;
        private final StringBuilder text = new StringBuilder();
        private long time = FIRST_TIME_MS;
        private int user;

        LogLines(long seed, int size) {
            this.random = new SplittableRandom(seed);
            this.size = size;
        }

        /** A line of exactly {@code size} bytes, or a little more when its fixed fields alone need that. */
        byte[] next() {
            user = random.nextInt(100_000);
            time += random.nextInt(20);
            text.setLength(0);
            text.append("{\"time\":").append(time)
                .append(",\"level\":\"").append(LEVELS[random.nextInt(LEVELS.length)])
                .append("\",\"service\":\"").append(WORDS[random.nextInt(12)])
                .append("\",\"host\":\"node-").append(random.nextInt(40))
                .append("\",\"user\":").append(user)
                .append(",\"trace\":\"").append(Long.toHexString(random.nextLong()))
                .append("\",\"took_us\":").append(random.nextInt(250_000))
                .append(",\"message\":\"");
            int textEnd = Math.max(text.length(), size - 2); // the last two bytes close the string and the object
            while (text.length() < textEnd) {
                text.append(WORDS[random.nextInt(WORDS.length)]).append(' ');
            }
            text.setLength(textEnd);
            return text.append("\"}").toString().getBytes(StandardCharsets.ISO_8859_1);
        }

        /** The key of the line that {@link #next} returned last. */
        byte[] key() {
            return Integer.toString(user).getBytes(StandardCharsets.ISO_8859_1);
        }
    }
}
